package process

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/server"
	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/kv"
	"github.com/hiqlite/hiqlite/pubsub"
)

// nodeArgument is the argument of a NodeService.
type nodeArgument struct {
	Config  hiqlite.Config
	Acks    string // file to which its writers append each acknowledged write
	Writers int
}

// A Report is the answer of a NodeService to every request.
type Report struct {
	Status   hiqlite.Status
	Hash     string
	Acked    []int64 // writes acknowledged so far, by writer
	Count    int64   // what the request counts
	Messages int64   // messages that were published by all nodes, as this node has applied them
	Measured Measured
	Errors   []string
}

// Measured is what the writers of a node have met since they were asked last.
type Measured struct {
	Writes        int           // that were acknowledged
	Gap           time.Duration // the longest time without an acknowledged write
	P50, P99, Max time.Duration // how long writes took
}

// A NodeService is a node with writers. Its requests are
//   - status: nothing but what every Report has,
//   - ready: wait until the node is ready,
//   - hash: hash the database,
//   - table: create the table that writers insert into,
//   - write, write-temp: start writers that insert rows, directly or from a TEMP
//     table,
//   - write-impatient: start writers that give up a write before each row,
//   - count: start writers that add to a counter and publish a message,
//   - load: write so many bytes per second until stop,
//   - measure: return what the writers have met since the last such request,
//   - probe: insert so many rows, with pauses, and return how long that took,
//   - stop: stop the writers,
//   - rows: count the rows of the table,
//   - missing: count the acknowledged writes of all nodes that are not there once,
//   - disordered: count the rows that are not there once, or were applied before an
//     earlier write of their writer, also one that it gave up,
//   - counted: return the counter and the number of messages,
//   - fail-disk: make every write to a file fail from now on,
//   - close: close the node.
type NodeService struct {
	Node  *hiqlite.Node
	cfg   hiqlite.Config
	api   *server.Server // nil: the node has no API address
	acks  *os.File
	acked []atomic.Int64 // by writer
	quit  atomic.Bool
	work  sync.WaitGroup

	mu     sync.Mutex
	errors []string
	lastAt time.Time       // when a write was acknowledged last, or measured
	gap    time.Duration   // see Measured
	took   []time.Duration // by the writes since the last measure request
}

// OpenNode opens the NodeService that Node.Start asks for.
func OpenNode(argument json.RawMessage) (*NodeService, error) {
	var a nodeArgument
	if err := json.Unmarshal(argument, &a); err != nil {
		return nil, err
	}
	a.Config.Logger = nil
	node, err := hiqlite.Open(context.Background(), a.Config)
	if err != nil {
		return nil, err
	}
	acks, err := os.OpenFile(a.Acks, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	s := &NodeService{Node: node, cfg: a.Config, acks: acks, acked: make([]atomic.Int64, a.Writers)}
	for _, m := range a.Config.Nodes {
		if m.ID == a.Config.NodeID && m.APIAddr != "" {
			if s.api, err = serveAPI(node, m.APIAddr); err != nil {
				return nil, err
			}
		}
	}
	return s, nil
}

// serveAPI serves the clients of a node.
func serveAPI(node *hiqlite.Node, address string) (*server.Server, error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	s, err := server.New(server.Config{Backend: node})
	if err != nil {
		return nil, err
	}
	go func() { _ = s.Serve(listener) }() // ends with Close
	return s, nil
}

// ServeNodes is Serve with NodeServices.
func ServeNodes() {
	Serve(func(argument json.RawMessage) (Service, error) { return OpenNode(argument) })
}

// Close closes the node.
func (s *NodeService) Close() error {
	if s.api != nil {
		_ = s.api.Close() // its connections are closed
	}
	return s.Node.Close()
}

// Do serves a request and returns a Report, which has the errors.
func (s *NodeService) Do(method string, args json.RawMessage) (any, error) {
	var r Report
	if err := s.do(method, args, &r); err != nil {
		s.Fail(err)
	}
	return s.Complete(r), nil
}

// Complete fills in what every Report has.
func (s *NodeService) Complete(r Report) Report {
	var err error
	if r.Status, err = s.Node.Status(context.Background()); err != nil {
		s.Fail(err)
	}
	for i := range s.acked {
		r.Acked = append(r.Acked, s.acked[i].Load())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r.Errors = append(r.Errors, s.errors...)
	return r
}

func (s *NodeService) do(method string, args json.RawMessage, r *Report) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), testrun.Patience)
	defer cancel()
	db := s.Node.DB()
	switch method {
	case "status":
	case "ready":
		return s.Node.Ready(ctx)
	case "hash":
		hash, _, err := s.Node.Hash(ctx)
		r.Hash = hex.EncodeToString(hash[:])
		return err
	case "table":
		_, err = db.ExecContext(ctx, "CREATE TABLE w(writer TEXT, n INTEGER, r INTEGER, at TEXT DEFAULT CURRENT_TIMESTAMP)")
	case "write":
		s.start(s.insert)
	case "write-temp":
		s.start(s.insertFromTemp)
	case "write-impatient":
		s.start(s.insertImpatiently)
	case "count":
		s.start(s.count)
	case "load":
		var rate int
		if err := json.Unmarshal(args, &rate); err != nil {
			return err
		}
		s.work.Go(func() { s.load(rate) })
	case "measure":
		r.Measured = s.measure()
	case "probe":
		var n int
		if err := json.Unmarshal(args, &n); err != nil {
			return err
		}
		r.Measured, err = s.probe(ctx, n)
	case "stop":
		s.quit.Store(true)
		s.work.Wait()
	case "rows":
		err = db.QueryRowContext(ctx, "SELECT count(*) FROM w").Scan(&r.Count)
	case "missing":
		r.Count, err = s.missing(ctx)
	case "disordered":
		r.Count, err = s.disordered(ctx)
	case "counted":
		r.Count, r.Messages, err = s.counted(ctx)
	case "fail-disk":
		err = failDisk()
	case "close":
		err = s.Node.Close()
	default:
		err = fmt.Errorf("there is no request %q", method)
	}
	return err
}

// Fail adds an error to all further Reports.
func (s *NodeService) Fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.errors = append(s.errors, err.Error())
}

// start starts the writers.
func (s *NodeService) start(write func(ctx context.Context, writer string, n int) error) {
	s.quit.Store(false)
	incarnation := time.Now().UnixNano() // names are unique over restarts
	for i := range s.acked {
		writer := fmt.Sprintf("%d-%d-%d", s.cfg.NodeID, incarnation, i)
		s.work.Go(func() { s.run(writer, &s.acked[i], write) })
	}
}

func (s *NodeService) run(writer string, acked *atomic.Int64, write func(ctx context.Context, writer string, n int) error) {
	for n := 0; !s.quit.Load(); n++ {
		ctx, cancel := context.WithTimeout(context.Background(), testrun.Patience/2)
		began := time.Now()
		err := write(ctx, writer, n)
		cancel()
		if err != nil {
			s.Fail(fmt.Errorf("writer %s, write %d: %w", writer, n, err))
			return
		}
		if _, err := fmt.Fprintf(s.acks, "%s %d\n", writer, n); err != nil {
			s.Fail(err)
			return
		}
		acked.Add(1)
		s.acknowledged(began)
	}
}

// acknowledged notes how long a write took.
func (s *NodeService) acknowledged(began time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if !s.lastAt.IsZero() {
		s.gap = max(s.gap, now.Sub(s.lastAt))
	}
	s.lastAt, s.took = now, append(s.took, now.Sub(began))
}

// probe inserts n rows, as a program does that writes now and then.
func (s *NodeService) probe(ctx context.Context, n int) (m Measured, err error) {
	var took []time.Duration
	name := fmt.Sprintf("probe-%d-%d", s.cfg.NodeID, time.Now().UnixNano())
	for i := range n {
		time.Sleep(mathrand.N(200 * time.Millisecond)) // so that it meets the other writers at any moment
		began := time.Now()
		if err := s.insert(ctx, name, i); err != nil {
			return m, err
		}
		took = append(took, time.Since(began))
	}
	m.summarize(took)
	return m, nil
}

// summarize sets what follows from how long writes took, and sorts that.
func (m *Measured) summarize(took []time.Duration) {
	slices.Sort(took)
	if m.Writes = len(took); m.Writes > 0 {
		m.P50, m.P99, m.Max = took[m.Writes/2], took[m.Writes*99/100], took[m.Writes-1]
	}
}

// measure returns what the writers have met since it was called last.
func (s *NodeService) measure() (m Measured) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	m.summarize(s.took)
	if m.Gap = s.gap; !s.lastAt.IsZero() {
		m.Gap = max(m.Gap, now.Sub(s.lastAt))
	}
	s.lastAt, s.gap, s.took = now, 0, nil
	return m
}

func (s *NodeService) insert(ctx context.Context, writer string, n int) error {
	_, err := s.Node.DB().ExecContext(ctx, "INSERT INTO w(writer, n, r) VALUES(?,?,random())", writer, n)
	return err
}

// insertImpatiently inserts a row after another one, for which it does not wait as long as
// a write takes when the nodes are far apart. That may be applied, but not later than the
// second one.
func (s *NodeService) insertImpatiently(ctx context.Context, writer string, n int) error {
	impatient, cancel := context.WithTimeout(ctx, mathrand.N(300*time.Millisecond))
	err := s.insert(impatient, writer+givenUp, n)
	cancel()
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return s.insert(ctx, writer, n)
}

// givenUp ends the name of a writer in the rows of the writes that it may have given up.
const givenUp = "?"

// disordered counts the rows that are there twice or not in the order of their writer's
// calls. The rowid shows in which order rows were applied.
func (s *NodeService) disordered(ctx context.Context) (n int64, err error) {
	err = s.Node.DB().QueryRowContext(ctx, `
		WITH calls AS (SELECT rowid AS applied, rtrim(writer, $1) AS writer, 2*n + (writer NOT LIKE '%' || $1) AS call FROM w),
		pairs AS (SELECT call, lag(call) OVER (PARTITION BY writer ORDER BY applied) AS before FROM calls)
		SELECT count(*) FROM pairs WHERE before >= call`, givenUp).Scan(&n)
	return n, err
}

// insertFromTemp inserts a row that goes through a TEMP table and a TEMP trigger,
// which stay on the connection.
func (s *NodeService) insertFromTemp(ctx context.Context, writer string, n int) error {
	conn, err := s.Node.DB().Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	for _, statement := range []hiqlite.Statement{
		{SQL: "CREATE TEMP TABLE IF NOT EXISTS mine(writer, n, r)"},
		{SQL: "CREATE TEMP TRIGGER IF NOT EXISTS doubles AFTER INSERT ON main.w BEGIN UPDATE w SET r=r*2 WHERE rowid=new.rowid; END"},
		{SQL: "DELETE FROM mine"},
		{SQL: "INSERT INTO mine VALUES(?,?,1+abs(random())%1000)", Args: []any{writer, n}},
		{SQL: "INSERT INTO w(writer, n, r) SELECT writer, n, r FROM mine"},
	} {
		if _, err := conn.ExecContext(ctx, statement.SQL, statement.Args...); err != nil {
			return fmt.Errorf("%s: %w", statement.SQL, err)
		}
	}
	return nil
}

// count adds 1 to a counter and publishes a message about it.
func (s *NodeService) count(ctx context.Context, writer string, n int) error {
	b, err := kv.New[string](s.Node, "w")
	if err != nil {
		return err
	}
	if _, err := b.Add(ctx, "all", 1); err != nil {
		return err
	}
	_, err = pubsub.Notify(ctx, s.Node, "w", fmt.Append(nil, writer, " ", n))
	return err
}

// counted returns the counter and the number of messages, by linearizable reads.
func (s *NodeService) counted(ctx context.Context) (count, messages int64, err error) {
	b, err := kv.New[string](s.Node, "w")
	if err != nil {
		return 0, 0, err
	}
	if count, _, err = b.Counter(hiqlite.WithConsistency(ctx, hiqlite.Linearizable), "all"); err != nil {
		return 0, 0, err
	}
	subscription, err := pubsub.Listen(ctx, s.Node, "w")
	if err != nil {
		return 0, 0, err
	}
	defer subscription.Close()
	return count, int64(subscription.Start()), nil
}

// LoadBytes is the size of a row that load inserts.
const LoadBytes = 10 << 10

// load inserts so many bytes per second, or as many as it can.
func (s *NodeService) load(rate int) {
	const size = LoadBytes
	began, blob := time.Now(), make([]byte, size)
	for n := 0; !s.quit.Load(); n++ {
		due := began.Add(time.Duration(n) * time.Second * size / time.Duration(rate))
		time.Sleep(time.Until(due)) // this is the rate
		rand.Read(blob)
		if _, err := s.Node.DB().Exec("INSERT INTO w(writer, n, r) VALUES('load',?,?)", n, blob); err != nil {
			s.Fail(err)
			return
		}
	}
}

// missing counts the writes, acknowledged to the writers of any node, whose row is
// not there exactly once.
func (s *NodeService) missing(ctx context.Context) (n int64, err error) {
	files, err := filepath.Glob(filepath.Join(filepath.Dir(s.acks.Name()), "acks-*"))
	if err != nil {
		return 0, err
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			return 0, err
		}
		for line := range strings.Lines(string(text)) {
			writer, number, _ := strings.Cut(strings.TrimSpace(line), " ")
			found := 0
			if err := s.Node.DB().QueryRowContext(ctx, "SELECT count(*) FROM w WHERE writer=? AND n=?", writer, number).Scan(&found); err != nil {
				return 0, err
			}
			if found != 1 {
				n++
			}
		}
	}
	return n, nil
}
