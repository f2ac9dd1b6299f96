package main

import (
	"context"
	crand "crypto/rand"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/loopback"
	"github.com/hiqlite/hiqlite/kv"
)

const (
	batchRows     = 1000 // statements of a hiqlite.Batch
	selectsPerRow = 10   // SELECTs measured for each INSERT, since they are so much faster
	batchedPerRow = 10   // rows written by Batch for each single INSERT
	warmUp        = 10   // for this many operations, one more is run before and not measured
	readyTimeout  = time.Minute
)

// bench has the flags of the bench command.
type bench struct {
	dsn         string
	nodes       int
	concurrency []int
	rows        int
	durability  string
	via         string
	keys        string
	prepared    bool
	encrypted   bool
	dir         string
	json        bool
}

func benchCommand() *cobra.Command {
	var b bench
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure a cluster whose nodes all run in this process, or servers",
		Long: `Opens the nodes in this process, with their data in a temporary folder, and
measures through the *sql.DB of one of them. For each concurrency it measures
single INSERTs, each acknowledged when a majority of the nodes has it on disk;
transactions of one INSERT and of many; batches of ` + fmt.Sprint(batchRows) + ` INSERTs; and
SELECTs of one row by its key.

` + memoryHelp + `

With --dsn it measures any database instead, such as that of servers. It writes to the
table hiqlite_bench and to the bucket of that name, and removes both afterwards.

All nodes in one process share this machine's processors and its disk, so a cluster of several
machines is faster. --json prints one object per line and concurrency.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := b.validate(); err != nil {
				return usageError(err)
			}
			return b.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.StringVar(&b.dsn, "dsn", "", "measure this database, such as that of servers, instead of nodes in this process; the table hiqlite_bench is replaced, and removed afterwards")
	f.IntVar(&b.nodes, "nodes", 3, "nodes of the cluster")
	f.IntSliceVar(&b.concurrency, "concurrency", []int{1, 4, 16, 64}, "goroutines that work at the same time")
	f.IntVar(&b.rows, "rows", 10_000, "single INSERTs measured at each concurrency")
	f.StringVar(&b.durability, "durability", "always", "when a write is acknowledged: always, when a majority has it on disk")
	f.StringVar(&b.via, "via", "leader", "the node whose *sql.DB is used: leader or follower")
	f.StringVar(&b.keys, "keys", "growing", "keys of the single INSERTs: growing, as most are; or scattered, so that goroutines write to different pages of the database")
	f.BoolVar(&b.prepared, "prepared", true, "prepare the INSERT once instead of sending its text each time")
	f.BoolVar(&b.encrypted, "encrypted", true, "give the nodes a secret, so that they encrypt their connections")
	f.StringVar(&b.dir, "dir", diskFolder(), "folder on the disk to measure; the data in it is removed afterwards")
	f.BoolVar(&b.json, "json", false, "print JSON objects instead of a table")
	return cmd
}

// diskFolder returns a folder for large temporary files. It prefers /var/tmp, because
// /tmp may be in memory.
func diskFolder() string {
	if info, err := os.Stat("/var/tmp"); err == nil && info.IsDir() {
		return "/var/tmp"
	}
	return os.TempDir()
}

func (b *bench) validate() error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if b.nodes < 1 || b.nodes > 9 {
		fault("--nodes %d is not between 1 and 9", b.nodes)
	}
	if len(b.concurrency) == 0 || slices.Min(b.concurrency) < 1 {
		fault("--concurrency %v: give numbers of at least 1", b.concurrency)
	}
	if b.rows < 1 {
		fault("--rows %d is less than 1", b.rows)
	}
	if b.durability != "always" {
		fault("--durability %s: this version knows always only, which waits for the disks of a majority", b.durability)
	}
	if b.via != "leader" && b.via != "follower" {
		fault("--via %s: give leader or follower", b.via)
	}
	if b.keys != "growing" && b.keys != "scattered" {
		fault("--keys %s: give growing or scattered", b.keys)
	}
	if b.via == "follower" && b.nodes == 1 {
		fault("--via follower: a single node has none")
	}
	return errors.Join(faults...)
}

// figures are the results at one concurrency.
type figures struct {
	Nodes         int     `json:"nodes"`
	Concurrency   int     `json:"concurrency"`
	InsertsPerS   float64 `json:"inserts_per_s"`
	InsertP50     float64 `json:"insert_p50_us"`
	InsertP99     float64 `json:"insert_p99_us"`
	TxRowsPerS    float64 `json:"tx_rows_per_s"`
	TxPerS        float64 `json:"tx_per_s"`
	BatchRowsPerS float64 `json:"batch_rows_per_s"`
	SelectsPerS   float64 `json:"select_per_s"`
	SelectP50     float64 `json:"select_p50_us"`

	// The median duration of a transaction of one INSERT, divided by that of a
	// plain INSERT measured in the same seconds: for transactions with pauses
	// between them, and for transactions that follow each other closely. Only
	// measured at concurrency 1.
	TxRatio     float64 `json:"tx_to_insert_ratio,omitempty"`
	TxKeptRatio float64 `json:"tx_back_to_back_to_insert_ratio,omitempty"`

	memoryFigures
}

// A target is a database that is measured: a node, or what a DSN names.
type target interface {
	hiqlite.Client
	DB() *sql.DB
}

// named is what a DSN names.
type named struct {
	hiqlite.Client
	db *sql.DB
}

func (n *named) DB() *sql.DB { return n.db }

func (b *bench) run(ctx context.Context, out, notes io.Writer) (err error) {
	if b.dsn != "" {
		d := database{dsn: b.dsn}
		return d.with(ctx, func(db *sql.DB, client hiqlite.Client) error {
			return b.runNamed(ctx, out, notes, &named{client, db})
		})
	}
	dir, err := os.MkdirTemp(b.dir, "hiqlite-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	nodes, err := openNodes(ctx, dir, b.nodes, b.encrypted)
	defer func() {
		for _, n := range nodes {
			err = errors.Join(err, n.Close())
		}
	}()
	if err != nil {
		return err
	}
	targets := make([]target, len(nodes))
	for i, n := range nodes {
		targets[i] = n
	}
	return b.measureAll(ctx, out, notes, targets)
}

// runNamed measures what a DSN names, and removes what it wrote.
func (b *bench) runNamed(ctx context.Context, out, notes io.Writer, n *named) (err error) {
	waiting, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	if err := n.Ready(waiting); err != nil {
		return err
	}
	s, err := n.Status(ctx)
	if err != nil {
		return err
	}
	b.nodes, b.via = len(s.Members), ""
	err = b.measureAll(ctx, out, notes, []target{n})
	cleaning, cancel := context.WithTimeout(context.WithoutCancel(ctx), readyTimeout)
	defer cancel()
	_, dropErr := n.db.ExecContext(cleaning, drop)
	bucket, clearErr := kv.New[[]byte](n, benchBucket, kv.WithCodec(kv.Bytes))
	if clearErr == nil {
		clearErr = bucket.Clear(cleaning)
	}
	return errors.Join(err, dropErr, clearErr)
}

// measureAll measures at each concurrency.
func (b *bench) measureAll(ctx context.Context, out, notes io.Writer, nodes []target) error {
	print := b.printer(out)
	for i, c := range b.concurrency {
		node, err := b.chooseNode(ctx, nodes)
		if err != nil {
			return err
		}
		before, err := node.Status(ctx)
		if err != nil {
			return err
		}
		f, err := b.measure(ctx, nodes, node, c)
		if err != nil {
			return err
		}
		if after, err := node.Status(ctx); err != nil {
			return err
		} else {
			noteElections(notes, c, before, after)
		}
		if err := print(i, f); err != nil {
			return err
		}
	}
	return nil
}

// noteElections says what makes the figures less comparable: an election, or shards
// that have different leaders.
func noteElections(notes io.Writer, c int, before, after hiqlite.Status) {
	elected := after.Term != before.Term
	differentLeaders := after.Leader == 0
	for i, s := range after.Shards {
		elected = elected || s.Term != before.Shards[i].Term
		differentLeaders = differentLeaders || s.Leader != after.Leader
	}
	if elected {
		fmt.Fprintf(notes, "there was an election during the measurement at concurrency %d\n", c)
	}
	if differentLeaders {
		fmt.Fprintf(notes, "SQL, kv, lock and pubsub had different leaders at concurrency %d\n", c)
	}
}

// slowTick is the Config.Tick of the nodes that should not lead. They would stand for
// election after 3.2 s or more; the first node does so after 0.8 to 1.6 s.
const slowTick = 200 * time.Millisecond

// openNodes opens a cluster in dir and waits until all of its nodes are ready. It also
// returns the nodes that it has opened before an error.
//
// Each of the four shards has a leader of its own. openNodes makes the first node lead
// all four, so that their figures can be compared: the other nodes start with a slow
// tick, and are restarted with the default one. With two nodes any of them may lead,
// because the first one alone is no majority while the other is restarted.
func openNodes(ctx context.Context, dir string, size int, encrypted bool) ([]*hiqlite.Node, error) {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	addresses, err := loopback.Addresses(size)
	if err != nil {
		return nil, err
	}
	var members []hiqlite.Member
	for i, address := range addresses {
		members = append(members, hiqlite.Member{ID: uint64(i + 1), RaftAddr: address})
	}
	secret := ""
	if encrypted {
		secret = filepath.Join(dir, "secret")
		if err := os.WriteFile(secret, []byte(crand.Text()), 0o600); err != nil {
			return nil, err
		}
	}
	var nodes []*hiqlite.Node
	open := func(id uint64, tick time.Duration) (*hiqlite.Node, error) {
		return hiqlite.Open(ctx, hiqlite.Config{DataDir: filepath.Join(dir, fmt.Sprint(id)), NodeID: id, Nodes: members, SecretFile: secret, Tick: tick})
	}
	for i, m := range members {
		tick := slowTick
		if i == 0 || size == 2 {
			tick = 0 // the default
		}
		n, err := open(m.ID, tick)
		if err != nil {
			return nodes, err
		}
		nodes = append(nodes, n)
	}
	if err := ready(ctx, nodes); err != nil || size == 2 {
		return nodes, err
	}
	// Restart one after the other, so that the leader keeps its majority.
	for i, m := range members[1:] {
		if err := nodes[i+1].Close(); err != nil {
			return nodes, err
		}
		n, err := open(m.ID, 0)
		if err != nil {
			return nodes, err
		}
		nodes[i+1] = n
		if err := ready(ctx, nodes); err != nil {
			return nodes, err
		}
	}
	return nodes, nil
}

// chooseNode returns the node to measure through.
func (b *bench) chooseNode(ctx context.Context, nodes []target) (target, error) {
	for _, n := range nodes {
		if b.via == "" {
			return n, nil
		}
		s, err := n.Status(ctx)
		if err != nil {
			return nil, err
		}
		if s.Leader != 0 && (s.Leader == s.NodeID) == (b.via == "leader") {
			return n, nil
		}
	}
	return nil, fmt.Errorf("there is no %s at the moment", b.via)
}

const (
	drop   = "DROP TABLE IF EXISTS hiqlite_bench"
	schema = drop + "; CREATE TABLE hiqlite_bench(id INTEGER PRIMARY KEY, ts INTEGER, name TEXT)"
	insert = "INSERT INTO hiqlite_bench(id, ts, name) VALUES(?, ?, ?)"
	point  = "SELECT ts, name FROM hiqlite_bench WHERE id=?"
)

func row(id int) []any { return []any{id, time.Now().Unix(), fmt.Sprint("Name ", id)} }

// measure measures at one concurrency. The operations have contexts that cannot be
// cancelled, as in most programs, so that the cost of contexts is not measured. ctx
// ends the whole measurement.
func (b *bench) measure(ctx context.Context, nodes []target, node target, c int) (f figures, err error) {
	f = figures{Nodes: b.nodes, Concurrency: c}
	db := node.DB()
	// Keep a connection for each goroutine; database/sql keeps two by default.
	db.SetMaxIdleConns(c)
	if _, err := db.ExecContext(ctx, schema); err != nil {
		return f, err
	}
	prepared, err := db.Prepare(insert)
	if err != nil {
		return f, err
	}
	defer prepared.Close()
	var next atomic.Int64
	inserted := func(id int) error {
		if b.keys == "growing" {
			id = int(next.Add(1) - 1)
		}
		if b.prepared {
			_, err := prepared.Exec(row(id)...)
			return err
		}
		_, err := db.Exec(insert, row(id)...)
		return err
	}
	t, err := repeat(ctx, nodes, c, b.rows, inserted)
	if err != nil {
		return f, fmt.Errorf("INSERT: %w", err)
	}
	f.InsertsPerS, f.InsertP50, f.InsertP99 = round(t.perSecond()), t.quantile(0.50), t.quantile(0.99)
	rows := b.rows + b.rows/warmUp // that the SELECTs below can read

	m := inMemory{node: node, nodes: nodes, concurrency: c, insert: inserted, next: rows}
	m.operations = min(b.rows, max(c, int(f.InsertsPerS*memorySlice.Seconds())))
	if err := m.measure(ctx, &f.memoryFigures); err != nil {
		return f, err
	}

	if err := b.transactions(ctx, nodes, db, c, &f); err != nil {
		return f, fmt.Errorf("transactions: %w", err)
	}

	first := m.next + rows
	batched := func(n int) error {
		stmts := make([]hiqlite.Statement, batchRows)
		for i := range stmts {
			stmts[i] = hiqlite.Statement{SQL: insert, Args: row(first + n*batchRows + i)}
		}
		_, err := hiqlite.Batch(context.Background(), db, stmts...)
		return err
	}
	t, err = repeat(ctx, nodes, c, max(2*c, b.rows*batchedPerRow/batchRows), batched)
	if err != nil {
		return f, fmt.Errorf("batch: %w", err)
	}
	f.BatchRowsPerS = round(batchRows * t.perSecond())

	selected, err := db.Prepare(point)
	if err != nil {
		return f, err
	}
	defer selected.Close()
	t, err = repeat(ctx, nodes, c, b.rows*selectsPerRow, func(int) error {
		var ts int64
		var name string
		return selected.QueryRow(rand.IntN(rows)).Scan(&ts, &name)
	})
	if err != nil {
		return f, fmt.Errorf("SELECT: %w", err)
	}
	f.SelectsPerS, f.SelectP50 = round(t.perSecond()), t.quantile(0.50)
	return f, nil
}

// times has the sorted durations of operations, and the duration of the whole run.
type times struct {
	all   time.Duration
	each  []time.Duration
	count int
}

func (t *times) perSecond() float64 { return float64(t.count) / t.all.Seconds() }

// quantile returns a quantile of the durations, in microseconds.
func (t *times) quantile(q float64) float64 {
	d := t.each[min(len(t.each)-1, int(q*float64(len(t.each))))]
	return round(float64(d) / float64(time.Microsecond))
}

// round keeps one decimal, since more are not significant.
func round(x float64) float64 { return float64(int64(10*x+0.5)) / 10 }

// repeat calls f n times from c goroutines and measures the calls. Before that it calls
// f n/warmUp times without measuring, and waits until no node is busy any more. f is
// called once with each number from 0 to n+n/warmUp-1.
func repeat(ctx context.Context, nodes []target, c, n int, f func(i int) error) (*times, error) {
	one := func(_, i int) error { return f(i) }
	if _, err := split(ctx, c, n, n/warmUp, one); err != nil {
		return nil, err
	}
	if err := ready(ctx, nodes); err != nil {
		return nil, err
	}
	return split(ctx, c, 0, n, one)
}

// ready waits until all nodes have applied everything that was written.
func ready[T hiqlite.Client](ctx context.Context, nodes []T) error {
	for _, n := range nodes {
		if err := n.Ready(ctx); err != nil {
			return err
		}
	}
	return nil
}

// split calls f from c goroutines, once for each of the n numbers i from first on. g is
// the number of the calling goroutine, from 0 on.
func split(ctx context.Context, c, first, n int, f func(g, i int) error) (*times, error) {
	t := &times{count: n, each: make([]time.Duration, n)}
	errs := make([]error, c)
	var wg sync.WaitGroup
	begin := time.Now()
	for g := range c {
		wg.Go(func() {
			for i := g * n / c; i < (g+1)*n/c && errs[g] == nil; i++ {
				if errs[g] = ctx.Err(); errs[g] != nil {
					return
				}
				began := time.Now()
				errs[g] = f(g, first+i)
				t.each[i] = time.Since(began)
			}
		})
	}
	wg.Wait()
	t.all = time.Since(begin)
	slices.Sort(t.each)
	return t, errors.Join(errs...)
}

// printer returns a function that prints the figures of one concurrency.
func (b *bench) printer(out io.Writer) func(i int, f figures) error {
	if b.json {
		enc := json.NewEncoder(out)
		return func(_ int, f figures) error { return enc.Encode(f) }
	}
	w := tabwriter.NewWriter(out, 14, 0, 2, ' ', tabwriter.AlignRight)
	var all []figures
	return func(i int, f figures) error {
		if i == 0 {
			if b.dsn != "" {
				fmt.Fprintf(out, "%d nodes; writes wait for the disks of a majority; measured through %s\n\n", b.nodes, redactedDSN(b.dsn))
			} else {
				fmt.Fprintf(out, "%d nodes in this process and on one disk; writes wait for the disks of a majority; measured through the %s\n\n", b.nodes, b.via)
			}
			fmt.Fprint(w, "concurrency\tinserts/s\tp50\tp99\ttx/s\ttx rows/s\tbatch rows/s\tselects/s\tp50\t\n")
		}
		fmt.Fprintf(w, "%d\t%.0f\t%.0f us\t%.0f us\t%.0f\t%.0f\t%.0f\t%.0f\t%.1f us\t\n",
			f.Concurrency, f.InsertsPerS, f.InsertP50, f.InsertP99, f.TxPerS, f.TxRowsPerS, f.BatchRowsPerS, f.SelectsPerS, f.SelectP50)
		if err := w.Flush(); err != nil {
			return err
		}
		if f.TxRatio != 0 {
			fmt.Fprintf(out, "a transaction of one insert takes as long as %.2f plain inserts; back to back, %.2f\n", f.TxRatio, f.TxKeptRatio)
		}
		if all = append(all, f); len(all) < len(b.concurrency) {
			return nil
		}
		return printMemory(out, all)
	}
}
