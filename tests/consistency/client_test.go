package consistency_test

import (
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"

	"github.com/hiqlite/hiqlite/tests/process"
)

// A life is one process of a node, from its start to its end, as the test sees it.
type life struct {
	*process.Process
	node     *node
	number   int           // unique in the cluster
	requests atomic.Uint64 // the ID of the last request
}

var (
	// errDied says that the process ended before it answered.
	errDied = errors.New("the node's process was killed")
	// errHangs says that the process runs but did not answer within patience.
	errHangs = errors.New("the node does not answer")
)

// ask sends a request, calls sent if that is not nil, and waits for the answer.
// The error is a *refusal, errDied or errHangs.
func (l *life) ask(r request, sent func()) (answer, error) {
	r.ID = l.requests.Add(1)
	if r.Within == 0 {
		r.Within = operationTimeout
	}
	call, err := l.Send(r.Do, r)
	if err != nil {
		return answer{}, err
	}
	if sent != nil {
		sent()
	}
	var a answer
	switch err := call.Wait(&a, patience); {
	case errors.Is(err, process.ErrEnded):
		return answer{}, errDied
	case errors.Is(err, process.ErrSilent):
		return answer{}, fmt.Errorf("%w: node %d, %s %q", errHangs, l.node.cfg.NodeID, r.Do, r.SQL)
	case err != nil:
		return answer{}, err
	}
	return refused(a)
}

func refused(a answer) (answer, error) {
	if a.Refusal != nil {
		return a, a.Refusal
	}
	return a, nil
}

// exec executes a statement outside of transactions.
func (l *life) exec(sql string, args ...any) (affected int64, err error) {
	a, err := l.ask(request{Do: "exec", SQL: []string{sql}, Args: [][]any{args}}, nil)
	if err != nil {
		return 0, err
	}
	return a.Affected[0], nil
}

// query executes a query outside of transactions; it is linearizable or local.
func (l *life) query(linearizable bool, sql string, args ...any) ([][]string, error) {
	a, err := l.ask(request{Do: "query", SQL: []string{sql}, Args: [][]any{args}, Linearizable: linearizable}, nil)
	return a.Rows, err
}

// A transaction is an open transaction in a node's process. After an error of any
// method but commit, it is certain that nothing was applied.
type transaction struct {
	l      *life
	id     uint64
	writes bool
}

// begin begins a transaction with the options of r.
func (l *life) begin(r request) (*transaction, error) {
	r.Do = "begin"
	a, err := l.ask(r, nil)
	if err != nil {
		return nil, certain{err}
	}
	return &transaction{l: l, id: a.ID}, nil
}

func (t *transaction) exec(sql string, args ...any) (affected int64, err error) {
	t.writes = true
	a, err := t.l.ask(request{Do: "exec", Tx: t.id, SQL: []string{sql}, Args: [][]any{args}}, nil)
	if err != nil {
		return 0, certain{err}
	}
	return a.Affected[0], nil
}

func (t *transaction) query(sql string, args ...any) ([][]string, error) {
	a, err := t.l.ask(request{Do: "query", Tx: t.id, SQL: []string{sql}, Args: [][]any{args}}, nil)
	if err != nil {
		return nil, certain{err}
	}
	return a.Rows, nil
}

// commit commits the transaction. outcomeOf says what its error means.
func (t *transaction) commit() error {
	_, err := t.l.ask(request{Do: "commit", Tx: t.id}, func() {
		if t.writes {
			t.l.node.reach(committing)
		}
	})
	return err
}

// rollback rolls the transaction back. Its error is ignored, because the
// transaction may have ended before.
func (t *transaction) rollback() { t.l.ask(request{Do: "rollback", Tx: t.id}, nil) }

// certain is an error after which it is certain that nothing is committed.
type certain struct{ error }

func (c certain) Unwrap() error { return c.error }

// An outcome is what became of a transaction, as far as its client knows.
type outcome int

const (
	committed outcome = iota
	aborted
	unknown
)

// outcomeOf returns the outcome that the error of a commit, or of a statement
// outside of transactions, means.
func outcomeOf(err error) outcome {
	var r *refusal
	switch {
	case err == nil:
		return committed
	case errors.As(err, new(certain)), errors.As(err, &r) && !r.Unknown:
		return aborted
	}
	return unknown
}

// kindOf returns a name for an error, or "" for an error that must not happen.
func kindOf(err error) string {
	var r *refusal
	switch {
	case err == nil:
		return "committed"
	case errors.Is(err, errDied):
		return "killed"
	case !errors.As(err, &r):
		return ""
	case r.Unknown && errors.As(err, new(certain)):
		return "" // only a commit can have an unknown outcome
	case r.Unknown:
		return "unknown"
	case r.Expired:
		return "expired"
	case r.Code == 5 || r.Code == 517:
		return "busy " + strconv.Itoa(r.Code)
	case r.NoLeader:
		return "no leader"
	case r.Context, r.Overdue:
		return "timed out"
	}
	return ""
}
