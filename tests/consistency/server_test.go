package consistency_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/lock"
	"github.com/hiqlite/hiqlite/tests/process"
)

// A request is sent to a node process, which serves its requests concurrently.
type request struct {
	ID   uint64
	Do   string // ready, status, hash, waiters, begin, exec, query, batch, commit, rollback, close, or one of lockServer.do
	Tx   uint64 `json:",omitempty"` // the ID of the request that began the transaction; 0: none
	SQL  []string
	Args [][]any
	Lock *lockOrder `json:",omitempty"`

	// For begin, and for requests outside of transactions.
	ReadOnly, Linearizable, Deferred bool
	Within                           time.Duration // the timeout of the request; of a begin, that of the whole transaction
	After                            time.Duration // how long the process waits before it serves the request
}

// An answer is the response of a node process to a request.
type answer struct {
	ID       uint64
	Rows     [][]string
	Affected []int64 // by statement
	Status   hiqlite.Status
	Hash     string
	Index    uint64 // the applied index to which Hash belongs
	Waiters  int    // in the lease queue, as far as the node has applied the log
	Lock     *lockReport
	Refusal  *refusal
}

// A refusal is an error that the node returned.
type refusal struct {
	Text                                         string
	Unknown, Expired, NoLeader, Context, Overdue bool
	Lost, Held, Closed                           bool // errors of locks
	Code                                         int  // SQLite's code
}

func (r *refusal) Error() string { return r.Text }

// server is the service of a node process.
type server struct {
	id       uint64
	node     *hiqlite.Node
	deferred *sql.DB // its transactions are deferred
	locks    *lockServer

	mu  sync.Mutex
	txs map[uint64]*openTx
}

type openTx struct {
	tx     *sql.Tx
	ctx    context.Context
	cancel context.CancelFunc
}

// openServer opens the server of a node process; its argument is the Config.
func openServer(argument json.RawMessage) (process.Service, error) {
	var cfg hiqlite.Config
	if err := json.Unmarshal(argument, &cfg); err != nil {
		return nil, err
	}
	node, err := hiqlite.Open(context.Background(), cfg)
	if err != nil {
		return nil, err
	}
	conn := cfg.Conn
	conn.Deferred = true
	connector, err := node.ConnectorWith(conn)
	if err != nil {
		return nil, err
	}
	return &server{
		id: cfg.NodeID, node: node, deferred: sql.OpenDB(connector), txs: map[uint64]*openTx{},
		locks: newLockServer(node),
	}, nil
}

// Do serves a request. Its reply is an answer, whose Refusal is the node's error.
func (s *server) Do(_ string, args json.RawMessage) (any, error) {
	var r request
	decoder := json.NewDecoder(bytes.NewReader(args))
	decoder.UseNumber()
	if err := decoder.Decode(&r); err != nil {
		return nil, err
	}
	time.Sleep(r.After) // the test asks for this delay
	a, err := s.do(&r)
	a.ID, a.Refusal = r.ID, s.refuse(&r, err)
	return a, nil
}

// Close closes the node.
func (s *server) Close() error {
	s.deferred.Close()
	return s.node.Close()
}

// refuse describes an error to the process of the test.
func (s *server) refuse(r *request, err error) *refusal {
	if err == nil {
		return nil
	}
	out := &refusal{
		Text:     fmt.Sprintf("node %d, %s %q: %v", s.id, r.Do, r.SQL, err),
		Unknown:  errors.Is(err, hiqlite.ErrOutcomeUnknown),
		Expired:  errors.Is(err, hiqlite.ErrTxExpired),
		NoLeader: errors.Is(err, hiqlite.ErrNoLeader),
		Context:  errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled),
		Lost:     errors.Is(err, lock.ErrLost),
		Held:     errors.Is(err, lock.ErrHeld),
		Closed:   errors.Is(err, hiqlite.ErrClosed) || strings.HasSuffix(err.Error(), "sql: database is closed"),
	}
	if t := s.open(r.Tx); t != nil && t.ctx.Err() != nil {
		out.Overdue = errors.Is(err, sql.ErrTxDone) || out.Context // database/sql has rolled it back
	}
	var e *hiqlite.Error
	if errors.As(err, &e) {
		out.Code = e.Code()
	}
	return out
}

func (s *server) open(id uint64) *openTx {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.txs[id]
}

func (s *server) do(r *request) (answer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), r.Within)
	if r.Linearizable {
		ctx = hiqlite.WithConsistency(ctx, hiqlite.Linearizable)
	}
	if r.Do == "begin" {
		return answer{}, s.begin(ctx, cancel, r)
	}
	defer cancel()
	var queries interface {
		QueryContext(context.Context, string, ...any) (*sql.Rows, error)
		ExecContext(context.Context, string, ...any) (sql.Result, error)
	} = s.node.DB()
	if r.Tx != 0 {
		t := s.open(r.Tx)
		if t == nil {
			return answer{}, fmt.Errorf("transaction %d is not open", r.Tx)
		}
		ctx, queries = t.ctx, t.tx
		switch r.Do {
		case "commit":
			defer t.cancel()
			return answer{}, t.tx.Commit()
		case "rollback":
			defer t.cancel()
			return answer{}, t.tx.Rollback()
		}
	}
	switch r.Do {
	case "ready":
		return answer{}, s.node.Ready(ctx)
	case "status":
		status, err := s.node.Status(ctx)
		return answer{Status: status}, err
	case "hash":
		hash, index, err := s.node.Hash(ctx)
		return answer{Hash: hex.EncodeToString(hash[:]), Index: index}, err
	case "waiters":
		return answer{Waiters: s.node.InMemoryShards().LeaseQueueLen()}, nil
	case "batch":
		return s.batch(ctx, r)
	case "close":
		return answer{}, s.node.Close()
	case "lock", "trylock", "queue", "fence", "held", "unlock":
		return s.locks.do(ctx, r, s.batch)
	case "exec":
		result, err := queries.ExecContext(ctx, r.SQL[0], arguments(r, 0)...)
		if err != nil {
			return answer{}, err
		}
		n, err := result.RowsAffected()
		return answer{Affected: []int64{n}}, err
	case "query":
		rows, err := queries.QueryContext(ctx, r.SQL[0], arguments(r, 0)...)
		if err != nil {
			return answer{}, err
		}
		return all(rows)
	}
	return answer{}, fmt.Errorf("there is no request %q", r.Do)
}

func (s *server) begin(ctx context.Context, cancel context.CancelFunc, r *request) error {
	db := s.node.DB()
	if r.Deferred {
		db = s.deferred
	}
	tx, err := db.BeginTx(ctx, &sql.TxOptions{ReadOnly: r.ReadOnly})
	if err != nil {
		cancel()
		return err
	}
	s.mu.Lock()
	s.txs[r.ID] = &openTx{tx, ctx, cancel}
	s.mu.Unlock()
	return nil
}

func (s *server) batch(ctx context.Context, r *request) (answer, error) {
	statements := make([]hiqlite.Statement, len(r.SQL))
	for i := range r.SQL {
		statements[i] = hiqlite.Statement{SQL: r.SQL[i], Args: arguments(r, i)}
	}
	results, err := hiqlite.Batch(ctx, s.node.DB(), statements...)
	if err != nil {
		return answer{}, err
	}
	var a answer
	for _, result := range results {
		n, err := result.RowsAffected()
		if err != nil {
			return a, err
		}
		a.Affected = append(a.Affected, n)
	}
	return a, nil
}

// arguments returns the arguments of statement i: texts and integers.
func arguments(r *request, i int) []any {
	if i >= len(r.Args) {
		return nil
	}
	out := make([]any, len(r.Args[i]))
	for j, arg := range r.Args[i] {
		out[j] = arg
		if n, ok := arg.(json.Number); ok {
			out[j], _ = n.Int64()
		}
	}
	return out
}

// all reads and closes rows.
func all(rows *sql.Rows) (a answer, err error) {
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		return a, err
	}
	for rows.Next() {
		cells := make([]sql.NullString, len(columns))
		dest := make([]any, len(columns))
		for i := range cells {
			dest[i] = &cells[i]
		}
		if err := rows.Scan(dest...); err != nil {
			return a, err
		}
		row := make([]string, len(columns))
		for i := range cells {
			row[i] = cells[i].String
		}
		a.Rows = append(a.Rows, row)
	}
	return a, rows.Err()
}
