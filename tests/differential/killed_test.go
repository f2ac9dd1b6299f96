package differential

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/loopback"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// nodeVariable makes the test's program a node, see runNode.
const nodeVariable = "HIQLITE_DIFFERENTIAL_NODE"

// An order is what a node process is told.
type order struct {
	Config hiqlite.Config
	Seed   uint64
}

// runNode opens a node and writes to it what random clients do, until it is told
// "hash": then it stops that, and answers a line.
func runNode(text string) error {
	var o order
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return err
	}
	o.Config.Logger = quiet
	ctx, cancel := patient()
	defer cancel()
	node, err := hiqlite.Open(ctx, o.Config)
	if err != nil {
		return err
	}
	if err := node.Ready(ctx); err != nil {
		return err
	}
	stop := make(chan struct{})
	var all sync.WaitGroup
	for i := range uint64(2) {
		random := rand.New(rand.NewPCG(o.Seed, i))
		c := &client{number: int(i), db: node.DB(), past: &past{}, generator: generator{Rand: random, features: anything, schema: &schema{}}}
		all.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					c.run(5)
					c.conn, c.past.all = nil, nil
				}
			}
		})
	}
	fmt.Println("ready")
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		if stop != nil {
			close(stop)
			all.Wait()
			stop = nil
			fmt.Println("quiet")
			continue
		}
		ctx, cancel := patient()
		hash, index, err := node.Hash(ctx)
		cancel()
		fmt.Printf("%d %x %v\n", index, hash, err)
	}
	return node.Close()
}

// A process is a node that can be killed.
type process struct {
	cmd *osexec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func startProcess(t testing.TB, cfg hiqlite.Config, seed uint64) *process {
	t.Helper()
	text, err := json.Marshal(order{cfg, seed})
	if err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: osexec.Command(os.Args[0])}
	p.cmd.Env = append(os.Environ(), nodeVariable+"="+string(text))
	p.cmd.Stderr = io.Discard
	in, err := p.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.in, p.out = in, bufio.NewReader(out)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return p
}

// line reads one that the process says.
func (p *process) line(t testing.TB) string {
	t.Helper()
	text, err := p.out.ReadString('\n')
	if err != nil {
		t.Fatalf("a node ended: %v", err)
	}
	return strings.TrimSpace(text)
}

func (p *process) ask(t testing.TB) string {
	t.Helper()
	if _, err := io.WriteString(p.in, "hash\n"); err != nil {
		t.Fatal(err)
	}
	return p.line(t)
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// TestReplicasOfKilledNodes kills nodes while random clients write to all, and
// compares the nodes in the end.
func TestReplicasOfKilledNodes(t *testing.T) {
	seeds(t, func(seed uint64) { killRound(t, seed) })
}

func killRound(t *testing.T, seed uint64) {
	const kills = 3
	random := rand.New(rand.NewPCG(seed, 13))
	dir, err := os.MkdirTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	addresses, err := loopback.Addresses(3)
	if err != nil {
		t.Fatal(err)
	}
	var members []hiqlite.Member
	for i, address := range addresses {
		members = append(members, hiqlite.Member{ID: uint64(i + 1), RaftAddr: address})
	}
	nodes := make([]*process, len(members))
	config := func(i int) hiqlite.Config {
		return hiqlite.Config{DataDir: filepath.Join(dir, fmt.Sprint(i+1)), NodeID: uint64(i + 1), Nodes: members, Tick: 10 * time.Millisecond, MaxSteps: maxSteps, LeaseTTL: time.Second}
	}
	for i := range nodes {
		nodes[i] = startProcess(t, config(i), seed+uint64(i))
		defer func() { nodes[i].kill() }()
	}
	for _, n := range nodes {
		if said := n.line(t); said != "ready" {
			t.Fatalf("seed %d: a node says %q", seed, said)
		}
	}
	for k := range kills {
		time.Sleep(time.Duration(100+random.IntN(900)) * time.Millisecond) // what is killed has to be at work
		i := random.IntN(len(nodes))
		nodes[i].kill()
		nodes[i] = startProcess(t, config(i), seed+uint64(100*(k+1)+i))
		if said := nodes[i].line(t); said != "ready" {
			t.Fatalf("seed %d: node %d says %q", seed, i+1, said)
		}
	}
	for _, n := range nodes {
		n.ask(t)
	}
	at := map[string]string{} // answers by index
	testrun.WaitFor(t, "the nodes to hold the same", func() bool {
		answers := map[string]bool{}
		for i, n := range nodes {
			answer := n.ask(t)
			index, hash, _ := strings.Cut(answer, " ")
			if other, ok := at[index]; ok && other != hash || !strings.HasSuffix(answer, "<nil>") {
				t.Fatalf("seed %d: at index %s node %d has %s, another one %s; their folders are in %s", seed, index, i+1, hash, other, keepFolder(dir))
			}
			at[index], answers[hash] = hash, true
		}
		return len(answers) == 1
	})
}

// keepFolder puts a folder where the test does not remove it.
func keepFolder(dir string) string {
	kept, err := os.MkdirTemp("", "hiqlite-differential-")
	if err != nil {
		return err.Error()
	}
	if err := os.Rename(dir, filepath.Join(kept, "nodes")); err != nil {
		return err.Error()
	}
	return kept
}
