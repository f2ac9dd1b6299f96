package consistency_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// A life is one process of a node, from its start to its end, as this side
// talks to it.
type life struct {
	node   *node
	number int // unique in the cluster
	cmd    *exec.Cmd
	dead   chan struct{} // closed when the process has ended and all it said was delivered
	killed atomic.Bool   // or about to be: else it must not end

	write sync.Mutex // of lines
	in    io.WriteCloser

	mu      sync.Mutex
	last    uint64
	pending map[uint64]chan answer
}

var (
	// errDied: the process ended before it answered.
	errDied = errors.New("the node's process was killed")
	// errHangs: a process that runs did not answer for long.
	errHangs = errors.New("the node does not answer")
)

// listen delivers answers, until the process ends.
func (l *life) listen(out io.Reader) {
	defer close(l.dead)
	defer func() {
		err := l.cmd.Wait()
		if !l.killed.Load() {
			l.node.c.t.Errorf("node %d has ended, nobody killed it: %v", l.node.cfg.NodeID, err)
		}
	}()
	lines := json.NewDecoder(out)
	for {
		var a answer
		if lines.Decode(&a) != nil {
			return
		}
		l.mu.Lock()
		got := l.pending[a.ID]
		delete(l.pending, a.ID)
		l.mu.Unlock()
		got <- a
	}
}

// ask sends a request, calls sent if that is not nil, and waits for the answer.
// Errors are a *refusal, errDied and errHangs.
func (l *life) ask(r request, sent func()) (answer, error) {
	got := make(chan answer, 1)
	l.mu.Lock()
	l.last++
	r.ID = l.last
	l.pending[r.ID] = got
	l.mu.Unlock()
	if r.Within == 0 {
		r.Within = operationTimeout
	}
	line, err := json.Marshal(r)
	if err != nil {
		return answer{}, err
	}
	l.write.Lock()
	_, err = l.in.Write(append(line, '\n'))
	l.write.Unlock()
	if err == nil && sent != nil {
		sent()
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case a := <-got:
		return refused(a)
	case <-l.dead:
	case <-timer.C:
		l.killed.Store(true)
		l.cmd.Process.Signal(syscall.SIGQUIT) // its goroutines go to its log
		return answer{}, fmt.Errorf("%w: node %d, %s %q", errHangs, l.node.cfg.NodeID, r.Do, r.SQL)
	}
	select {
	case a := <-got:
		return refused(a)
	default:
		return answer{}, errDied
	}
}

func refused(a answer) (answer, error) {
	if a.Refusal != nil {
		return a, a.Refusal
	}
	return a, nil
}

// exec runs a statement on its own.
func (l *life) exec(sql string, args ...any) (affected int64, err error) {
	a, err := l.ask(request{Do: "exec", SQL: []string{sql}, Args: [][]any{args}}, nil)
	if err != nil {
		return 0, err
	}
	return a.Affected[0], nil
}

// query runs a query on its own, linearizable or local.
func (l *life) query(linearizable bool, sql string, args ...any) ([][]string, error) {
	a, err := l.ask(request{Do: "query", SQL: []string{sql}, Args: [][]any{args}, Linearizable: linearizable}, nil)
	return a.Rows, err
}

// A transaction is open in a node's process. Its errors, but for those of
// commit, are certain: nothing was applied.
type transaction struct {
	l      *life
	id     uint64
	writes bool
}

// begin begins a transaction as r says.
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

// commit commits; what it answers is for outcomeOf.
func (t *transaction) commit() error {
	_, err := t.l.ask(request{Do: "commit", Tx: t.id}, func() {
		if t.writes {
			t.l.node.reach(committing)
		}
	})
	return err
}

// rollback rolls back. Its error is of no interest: it may be over already.
func (t *transaction) rollback() { t.l.ask(request{Do: "rollback", Tx: t.id}, nil) }

// certain is an error after which nothing is committed.
type certain struct{ error }

func (c certain) Unwrap() error { return c.error }

// An outcome is what became of a transaction, as far as its client knows.
type outcome int

const (
	committed outcome = iota
	aborted
	unknown
)

// outcomeOf judges the error of what, at once, proposes and commits: a commit,
// or a statement on its own.
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

// kindOf names an error. That of one which must not happen is empty.
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
		return "" // there is nothing of which it could not be known
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
