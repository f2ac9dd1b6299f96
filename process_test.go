package hiqlite_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/kv"
	"github.com/hiqlite/hiqlite/pubsub"
)

// A process is a node in a process of its own, to be killed: this test binary,
// started again with nodeVariable set. It obeys lines on its standard input.
type process struct {
	t      testing.TB
	cfg    hiqlite.Config
	acks   string // file to which its writers report
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Reader
	killed bool
	said   *strings.Builder // what it wrote to its standard error; read once it has ended
}

const nodeVariable = "HIQLITE_TEST_NODE"

// nodeOrder is what a node process is told.
type nodeOrder struct {
	Config  hiqlite.Config
	Acks    string
	Writers int
}

// report is what a node process answers to every line.
type report struct {
	Status hiqlite.Status
	Hash   string
	Acked  []int64 // writes acknowledged so far, by writer
	Count  int64   // what they have counted, all together
	Told   int64   // messages that all have told, as this node keeps them
	Errors []string
}

// runNode is the main function of a node process.
func runNode(order string) error {
	var o nodeOrder
	if err := json.Unmarshal([]byte(order), &o); err != nil {
		return err
	}
	node, err := hiqlite.Open(context.Background(), o.Config)
	if err != nil {
		return err
	}
	w := &writers{node: node, acked: make([]atomic.Int64, o.Writers)}
	if w.file, err = os.OpenFile(o.Acks, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644); err != nil {
		return err
	}
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		r := report{}
		what, argument, _ := strings.Cut(in.Text(), " ")
		switch what {
		case "load":
			rate, err := strconv.Atoi(argument)
			if err != nil {
				return err
			}
			w.wait.Go(func() { w.load(rate) })
		case "table":
			if _, err := node.DB().Exec("CREATE TABLE w(writer TEXT, n INTEGER, r INTEGER, at TEXT DEFAULT CURRENT_TIMESTAMP)"); err != nil {
				w.fail(err)
			}
		case "write":
			write := w.insert
			if argument == "temp" {
				write = w.insertByTemp
			}
			w.start(o.Config.NodeID, write)
		case "count":
			w.start(o.Config.NodeID, w.count)
		case "counted":
			if r.Count, r.Told, err = counted(node); err != nil {
				w.fail(err)
			}
		case "compact":
			if err := node.CompactMemory(0); err != nil {
				w.fail(err)
			}
		case "stop":
			w.stop()
		case "fail":
			if err := failDisk(); err != nil {
				return err
			}
		case "rows":
			if err := node.DB().QueryRow("SELECT count(*) FROM w").Scan(&r.Count); err != nil {
				w.fail(err)
			}
		case "close":
			if err := node.Close(); err != nil {
				w.fail(err)
			}
		case "missing":
			if r.Count, err = missing(node, filepath.Dir(o.Acks)); err != nil {
				w.fail(err)
			}
		case "ready":
			ctx, cancel := context.WithTimeout(context.Background(), testrun.Patience)
			if err := node.Ready(ctx); err != nil {
				w.fail(err)
			}
			cancel()
		case "hash":
			hash, _, err := node.Hash(context.Background())
			if err != nil {
				w.fail(err)
			}
			r.Hash = hex.EncodeToString(hash[:])
		}
		if r.Status, err = node.Status(context.Background()); err != nil {
			w.fail(err)
		}
		for i := range w.acked {
			r.Acked = append(r.Acked, w.acked[i].Load())
		}
		r.Errors = w.failures()
		if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
			return err
		}
	}
	return node.Close()
}

// missing counts the rows that were acknowledged to the writers of any process,
// and are not there.
func missing(node *hiqlite.Node, dir string) (n int64, err error) {
	files, err := filepath.Glob(filepath.Join(dir, "acks-*"))
	if err != nil {
		return 0, err
	}
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			return 0, err
		}
		for line := range strings.Lines(string(data)) {
			writer, number, _ := strings.Cut(strings.TrimSpace(line), " ")
			found := 0
			if err := node.DB().QueryRow("SELECT count(*) FROM w WHERE writer=? AND n=?", writer, number).Scan(&found); err != nil {
				return 0, err
			}
			if found != 1 {
				n++
			}
		}
	}
	return n, nil
}

// writers insert rows, one after the other, and write down what was acknowledged.
type writers struct {
	node  *hiqlite.Node
	file  *os.File
	acked []atomic.Int64
	quit  atomic.Bool
	wait  sync.WaitGroup

	mu     sync.Mutex
	errors []string
}

func (w *writers) start(node uint64, write func(ctx context.Context, name string, n int) error) {
	incarnation := time.Now().UnixNano()
	for i := range w.acked {
		name := fmt.Sprintf("%d-%d-%d", node, incarnation, i)
		w.wait.Go(func() { w.run(name, &w.acked[i], write) })
	}
}

func (w *writers) insert(ctx context.Context, name string, n int) error {
	_, err := w.node.DB().ExecContext(ctx, "INSERT INTO w(writer, n, r) VALUES(?,?,random())", name, n)
	return err
}

// count counts one, and tells so.
func (w *writers) count(ctx context.Context, name string, n int) error {
	b, err := kv.New[string](w.node, "w")
	if err != nil {
		return err
	}
	if _, err := b.Add(ctx, "all", 1); err != nil {
		return err
	}
	_, err = pubsub.Notify(ctx, w.node, "w", fmt.Append(nil, name, " ", n))
	return err
}

// counted returns what was counted and told, linearizably.
func counted(node *hiqlite.Node) (count, told int64, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), testrun.Patience)
	defer cancel()
	b, err := kv.New[string](node, "w")
	if err != nil {
		return 0, 0, err
	}
	if count, _, err = b.Counter(hiqlite.WithConsistency(ctx, hiqlite.Linearizable), "all"); err != nil {
		return 0, 0, err
	}
	s, err := pubsub.Listen(ctx, node, "w")
	if err != nil {
		return 0, 0, err
	}
	defer s.Close()
	return count, int64(s.Start()), nil
}

func (w *writers) run(name string, acked *atomic.Int64, write func(ctx context.Context, name string, n int) error) {
	for n := 0; !w.quit.Load(); n++ {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		err := write(ctx, name, n)
		cancel()
		if err != nil {
			w.fail(fmt.Errorf("writer %s, write %d: %w", name, n, err))
			return
		}
		if _, err := fmt.Fprintf(w.file, "%s %d\n", name, n); err != nil {
			w.fail(err)
			return
		}
		acked.Add(1)
	}
}

// load writes so many bytes a second, as far as they are taken.
func (w *writers) load(rate int) {
	const size = 10 << 10
	began, blob := time.Now(), make([]byte, size)
	for n := 0; !w.quit.Load(); n++ {
		due := began.Add(time.Duration(n) * time.Second * size / time.Duration(rate))
		time.Sleep(time.Until(due)) // the rate
		rand.Read(blob)
		if _, err := w.node.DB().Exec("INSERT INTO w(writer, n, r) VALUES('load',?,?)", n, blob); err != nil {
			w.fail(err)
			return
		}
	}
}

func (w *writers) stop() {
	w.quit.Store(true)
	w.wait.Wait()
}

func (w *writers) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.errors = append(w.errors, err.Error())
}

func (w *writers) failures() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string(nil), w.errors...)
}

// processes starts a cluster of processes.
func processes(t testing.TB, size, writers int, change ...func(*hiqlite.Config)) []*process {
	t.Helper()
	dir := t.TempDir()
	var members []hiqlite.Member
	for i, address := range freePorts(t, size) {
		members = append(members, hiqlite.Member{ID: uint64(i + 1), RaftAddr: address})
	}
	var all []*process
	for i := range size {
		p := &process{t: t, acks: filepath.Join(dir, fmt.Sprintf("acks-%d", i+1)), cfg: hiqlite.Config{
			DataDir: filepath.Join(dir, fmt.Sprint(i+1)), NodeID: uint64(i + 1), Nodes: members, Tick: 10 * time.Millisecond,
		}}
		for _, f := range change {
			f(&p.cfg)
		}
		p.start(writers)
		all = append(all, p)
	}
	t.Cleanup(func() {
		for _, p := range all {
			p.kill()
		}
	})
	for _, p := range all {
		p.ask("ready")
	}
	return all
}

func (p *process) start(writers int) {
	p.t.Helper()
	order, err := json.Marshal(nodeOrder{Config: p.cfg, Acks: p.acks, Writers: writers})
	if err != nil {
		p.t.Fatal(err)
	}
	p.cmd = exec.Command(os.Args[0])
	p.cmd.Env = append(os.Environ(), nodeVariable+"="+string(order))
	p.said = new(strings.Builder)
	p.cmd.Stderr = io.MultiWriter(os.Stderr, p.said)
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		p.t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	p.out = bufio.NewReader(out)
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.killed = false
}

// try sends a line and returns the report, unless the process has ended.
func (p *process) try(line string) (r report, err error) {
	p.t.Helper()
	fmt.Fprintln(p.in, line)
	data, err := p.out.ReadBytes('\n')
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(data, &r); err != nil {
		p.t.Fatalf("node %d answers %q: %v", p.cfg.NodeID, data, err)
	}
	return r, nil
}

// ask sends a line and returns the report. A process that has ended, or whose
// writers failed, fails the test.
func (p *process) ask(line string) report {
	p.t.Helper()
	r, err := p.try(line)
	if err != nil {
		p.t.Fatalf("node %d does not answer to %q: %v", p.cfg.NodeID, line, err)
	}
	if len(r.Errors) > 0 {
		p.t.Fatalf("node %d: %v", p.cfg.NodeID, r.Errors)
	}
	return r
}

func (p *process) signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// kill ends the process with SIGKILL.
func (p *process) kill() {
	if !p.killed {
		p.killed = true
		p.cmd.Process.Kill()
		p.cmd.Wait()
	}
}
