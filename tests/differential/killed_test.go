package differential

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/tests/process"
)

// An order is the argument of a node process.
type order struct {
	Config hiqlite.Config
	Seed   uint64
}

// A clientService is a node process in which random clients write. The method "stop"
// stops them, and "hash" returns the state of the node.
type clientService struct {
	node    *hiqlite.Node
	quit    chan struct{}
	clients sync.WaitGroup
}

// A state is a hash of a node's rows at an index of the log.
type state struct {
	Index uint64
	Hash  string
}

func openClients(argument json.RawMessage) (process.Service, error) {
	var o order
	if err := json.Unmarshal(argument, &o); err != nil {
		return nil, err
	}
	o.Config.Logger = discardLogs
	ctx, cancel := stepContext()
	defer cancel()
	node, err := hiqlite.Open(ctx, o.Config)
	if err != nil {
		return nil, err
	}
	if err := node.Ready(ctx); err != nil {
		return nil, err
	}
	s := &clientService{node: node, quit: make(chan struct{})}
	for i := range uint64(2) {
		random := rand.New(rand.NewPCG(o.Seed, i))
		c := &client{number: int(i), db: node.DB(), past: &past{}, generator: generator{Rand: random, features: anything, schema: &schema{}}}
		s.clients.Go(func() {
			for {
				select {
				case <-s.quit:
					return
				default:
					c.run(5)
					c.conn, c.past.all = nil, nil
				}
			}
		})
	}
	return s, nil
}

func (s *clientService) Do(method string, _ json.RawMessage) (any, error) {
	ctx, cancel := stepContext()
	defer cancel()
	switch method {
	case "ready":
		return nil, s.node.Ready(ctx)
	case "stop":
		close(s.quit)
		s.clients.Wait()
		return nil, nil
	case "hash":
		hash, index, err := s.node.Hash(ctx)
		return state{index, hex.EncodeToString(hash[:])}, err
	}
	return nil, fmt.Errorf("there is no request %q", method)
}

func (s *clientService) Close() error { return s.node.Close() }

// TestReplicasOfKilledNodes kills nodes while random clients write to all nodes, and
// compares the nodes at the end.
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
	members := process.Members(t, 3)
	nodes := make([]*process.Process, len(members))
	start := func(i int, seed uint64) {
		cfg := hiqlite.Config{DataDir: filepath.Join(dir, fmt.Sprint(i+1)), NodeID: uint64(i + 1), Nodes: members, Tick: 10 * time.Millisecond, MaxSteps: maxSteps, LeaseTTL: time.Second}
		if nodes[i], err = process.Start(order{cfg, seed}, filepath.Join(dir, fmt.Sprintf("log-%d", i+1))); err != nil {
			t.Fatal(err)
		}
	}
	call := func(i int, method string) (now state) {
		if err := nodes[i].Call(method, nil, &now, testrun.Patience); err != nil {
			t.Fatalf("seed %d: node %d, %s: %v; %s", seed, i+1, method, err, nodes[i].Log())
		}
		return now
	}
	for i := range nodes {
		start(i, seed+uint64(i))
		defer func() { nodes[i].Kill() }()
	}
	for i := range nodes {
		call(i, "ready")
	}
	for k := range kills {
		time.Sleep(time.Duration(100+random.IntN(900)) * time.Millisecond) // let the clients of the victim write
		i := random.IntN(len(nodes))
		nodes[i].Kill()
		start(i, seed+uint64(100*(k+1)+i))
		call(i, "ready")
	}
	for i := range nodes {
		call(i, "stop")
	}
	byIndex := map[uint64]string{}
	testrun.WaitFor(t, "the nodes to hold the same", func() bool {
		hashes := map[string]bool{}
		for i := range nodes {
			now := call(i, "hash")
			if other, ok := byIndex[now.Index]; ok && other != now.Hash {
				t.Fatalf("seed %d: at index %d node %d has %s, another one %s; their folders are in %s", seed, now.Index, i+1, now.Hash, other, keepFolder(dir))
			}
			byIndex[now.Index], hashes[now.Hash] = now.Hash, true
		}
		return len(hashes) == 1
	})
}

// keepFolder moves a folder to a place where the test does not remove it.
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
