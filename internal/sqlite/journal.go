package sqlite

import (
	"encoding/binary"
	"unsafe"

	lib "modernc.org/sqlite/lib"
)

// SQLite keeps a statement journal, to undo a statement that failed after it had
// changed rows, only if it sees that the statement can fail so: by a constraint
// or in a function. It does not see that aggregates (sum() overflows), virtual
// tables (json_each() of what is no JSON, a MATCH that is none) and the types of
// STRICT tables fail as well. On a connection of its own nobody notices, since
// the whole transaction is undone. Within a transaction the rows stay, and here
// every statement runs within one, together with those of others.

// keepJournal makes a statement that can fail after it has changed rows, by
// what SQLite does not think of, keep a statement journal.
func (s *Stmt) keepJournal() {
	if s.ReadOnly() {
		return
	}
	v := at[lib.TVdbe](s.p)
	fails, several := canFailPartway(v.FaOp, v.FnOp)
	for p := v.FpProgram; p != 0; p = at[lib.TSubProgram](p).FpNext {
		sub := at[lib.TSubProgram](p)
		f, _ := canFailPartway(sub.FaOp, sub.FnOp)
		fails = fails || f || calls(sub.FaOp, sub.FnOp)
	}
	if fails && several {
		*at[uint16](s.p + journalFlags) |= journalFlag
	}
}

// calls reports whether a trigger, or what a foreign key does, calls another: it
// may call itself so, up to a depth that is an error.
func calls(ops uintptr, n int32) bool {
	for i := range uintptr(n) {
		if at[lib.TVdbeOp](ops+i*unsafe.Sizeof(lib.TVdbeOp{})).Fopcode == lib.OP_Program {
			return true
		}
	}
	return false
}

// journalFlags is where the bits of a statement stand, among them the one that
// SQLite calls usesStmtJournal: the field's name has its offset in it, which is
// not the same on all platforms.
const journalFlags = unsafe.Offsetof(lib.TVdbe{}.FeVdbeState) + 1

// journalFlag is that bit.
var journalFlag = func() uint16 {
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 { // big-endian
		return 1 << (15 - 5)
	}
	return 1 << 5
}()

// canFailPartway reports whether a program can fail by what SQLite does not think of,
// and whether it can change several rows.
func canFailPartway(ops uintptr, n int32) (fails, several bool) {
	for i := range uintptr(n) {
		op := at[lib.TVdbeOp](ops + i*unsafe.Sizeof(lib.TVdbeOp{}))
		switch op.Fopcode {
		case lib.OP_FkCounter:
			if op.Fp1 != 0 { // it is undone with the journal only
				return true, true
			}
		case lib.OP_TypeCheck, lib.OP_AggStep, lib.OP_AggStep1, lib.OP_AggInverse, lib.OP_AggValue, lib.OP_AggFinal,
			lib.OP_VOpen, lib.OP_VFilter, lib.OP_VColumn, lib.OP_VNext, lib.OP_Concat:
			fails = true
		case lib.OP_Next, lib.OP_Prev, lib.OP_SorterNext, lib.OP_RowSetRead, lib.OP_Yield, lib.OP_Program:
			several = true
		}
	}
	return fails, several
}
