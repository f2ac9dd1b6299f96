package sqlite

import "testing"

// The texts are in messages, which are results of operations: a version of SQLite that has
// others changes the format of the log.
func TestTextsOfCodes(t *testing.T) {
	for code, want := range map[int]string{
		CodeError: "SQL logic error", CodeAbort: "query aborted", CodeRollback: "abort due to ROLLBACK",
		CodeBusy: "database is locked", CodeBusySnapshot: "database is locked", CodeReadOnly: "attempt to write a readonly database",
		CodeFull: "database or disk is full", CodeInterrupt: "interrupted", CodeNoMemory: "out of memory", CodeTooBig: "string or blob too big",
		CodeAuth: "authorization denied", CodeForeignKey: "constraint failed", CodeNotNull: "constraint failed",
		CodeCorrupt: "database disk image is malformed", CodeReadFailed: "disk I/O error", CodeWriteFailed: "disk I/O error", CodeCannotOpen: "unable to open database file",
	} {
		if got := CodeText(code); got != want {
			t.Errorf("the text of code %d is %q, want %q", code, got, want)
		}
	}
	// Our own errors have the form of those that SQLite reports.
	if got, want := NotAuthorized("why", "").Message, "authorization denied: why (23)"; got != want {
		t.Errorf("the message is %q, want %q", got, want)
	}
}
