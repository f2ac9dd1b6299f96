package sqlite

import (
	"encoding/binary"
	"unsafe"

	lib "modernc.org/sqlite/lib"
)

// With a statement journal SQLite undoes a statement that fails after it has changed
// rows. SQLite keeps one only if it knows that the statement can fail in this way: by a
// constraint, or in a function. It does not know that aggregates can fail (sum()
// overflows), and virtual tables (json_each() of a text that is not JSON, a malformed
// MATCH), and the types of STRICT tables. Without the journal, the rows that such a
// statement has changed stay changed. Outside of a transaction nobody notices, because
// SQLite undoes the implicit transaction. But hiqlite runs every statement inside a
// transaction, together with the statements of other programs.

// keepJournal makes SQLite keep a statement journal for a statement that can change
// several rows and can fail in one of the ways that SQLite does not consider.
func (s *Stmt) keepJournal() {
	if s.ReadOnly() {
		return
	}
	v := at[lib.TVdbe](s.p)
	fails, several := canFailPartway(v.FaOp, v.FnOp)
	for p := v.FpProgram; p != 0; p = at[lib.TSubProgram](p).FpNext {
		sub := at[lib.TSubProgram](p)
		f, _ := canFailPartway(sub.FaOp, sub.FnOp)
		fails = fails || f || callsProgram(sub.FaOp, sub.FnOp)
	}
	if fails && several {
		*at[uint16](s.p + journalFlags) |= journalFlag
	}
}

// callsProgram reports whether the program of a trigger, or of the action of a foreign key,
// calls another one. In this way it can call itself, and fail because it is nested too
// deep.
func callsProgram(ops uintptr, n int32) bool {
	for i := range uintptr(n) {
		if at[lib.TVdbeOp](ops+i*unsafe.Sizeof(lib.TVdbeOp{})).Fopcode == lib.OP_Program {
			return true
		}
	}
	return false
}

// journalFlags is the offset of the bit fields of SQLite's struct Vdbe. Go has no field
// for them that has the same name on all platforms: the name contains the offset.
const journalFlags = unsafe.Offsetof(lib.TVdbe{}.FeVdbeState) + 1

// journalFlag is the bit field usesStmtJournal among them.
var journalFlag = func() uint16 {
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 { // big-endian
		return 1 << (15 - 5)
	}
	return 1 << 5
}()

// canFailPartway reports whether a program can fail in a way that SQLite does not
// consider, and whether it can change several rows.
func canFailPartway(ops uintptr, n int32) (fails, several bool) {
	for i := range uintptr(n) {
		op := at[lib.TVdbeOp](ops + i*unsafe.Sizeof(lib.TVdbeOp{}))
		switch op.Fopcode {
		case lib.OP_FkCounter:
			if op.Fp1 != 0 { // the counter of deferred violations is restored only with a journal
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
