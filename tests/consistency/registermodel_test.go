package consistency_test

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
)

// A registerOp is an operation on a register. The first value of a register is 0.
type registerOp struct {
	worker, key int
	kind        registerKind
	value       int  // what a write or a swap writes
	compare     int  // a swap writes only if the register has this value
	swapped     bool // the swap wrote
	found       int  // what a read returned
	unknown     bool // it is not known whether the operation happened
	call, ret   int64
}

type registerKind int

const (
	readRegister registerKind = iota
	writeRegister
	swapRegister
)

func (op registerOp) String() string {
	text := [...]string{
		fmt.Sprintf("read %d", op.found),
		fmt.Sprintf("write %d", op.value),
		fmt.Sprintf("swap %d for %d: %v", op.compare, op.value, op.swapped),
	}[op.kind]
	if op.unknown {
		text += " (unknown)"
	}
	return fmt.Sprintf("%d..%d us, worker %d: %s", op.call/1000, op.ret/1000, op.worker, text)
}

// registerModel is the model of one register. An operation with an unknown outcome
// is pending until the end of the history, so it may also happen after all others.
var registerModel = porcupine.Model{
	Init: func() any { return 0 },
	Step: func(state, input, _ any) (bool, any) {
		op, value := input.(registerOp), state.(int)
		switch op.kind {
		case readRegister:
			return op.found == value, value
		case writeRegister:
			return true, op.value
		}
		found := op.compare == value
		if found {
			return op.unknown || op.swapped, op.value
		}
		return op.unknown || !op.swapped, value
	},
}

// checkRegisters returns the registers that are not linearizable, and those for
// which search was too short.
func checkRegisters(history []registerOp, search time.Duration) (wrong []string) {
	byKey := map[int][]registerOp{}
	for _, op := range history {
		byKey[op.key] = append(byKey[op.key], op)
	}
	end := time.Now().Add(search)
	for key, ops := range byKey {
		operations := make([]porcupine.Operation, len(ops))
		for i, op := range ops {
			operations[i] = porcupine.Operation{ClientId: i, Input: op, Call: op.call, Return: op.ret}
		}
		switch porcupine.CheckOperationsTimeout(registerModel, operations, max(time.Until(end), time.Millisecond)) {
		case porcupine.Illegal:
			slices.SortFunc(ops, func(a, b registerOp) int { return cmp.Compare(a.call, b.call) })
			text := fmt.Sprintf("row %d is not linearizable:", key)
			for _, op := range ops {
				text += "\n\t" + op.String()
			}
			wrong = append(wrong, text)
		case porcupine.Unknown:
			wrong = append(wrong, fmt.Sprintf("row %d, with %d operations, was not checked in time", key, len(ops)))
		}
	}
	return wrong
}
