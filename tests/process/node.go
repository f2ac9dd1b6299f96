package process

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/loopback"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// A Node is a node of a cluster of processes, as the test sees it. Its methods fail
// the test unless they say something else.
type Node struct {
	Config  hiqlite.Config
	t       testing.TB
	acks    string // file of the writes that were acknowledged to its writers
	log     string
	writers int
	command []string // starts the process, see Start
	*Process
}

// Members returns a cluster of n nodes on loopback addresses.
func Members(t testing.TB, n int) (members []hiqlite.Member) {
	t.Helper()
	addresses, err := loopback.Addresses(n)
	if err != nil {
		t.Fatal(err)
	}
	for i, address := range addresses {
		members = append(members, hiqlite.Member{ID: uint64(i + 1), RaftAddr: address})
	}
	return members
}

// NewNodes starts a cluster of n nodes with so many writers each, and returns when
// all are ready. The processes are killed when the test ends.
func NewNodes(t testing.TB, n, writers int, change ...func(*hiqlite.Config)) []*Node {
	t.Helper()
	return startNodes(t, Members(t, n), writers, nil, change)
}

// NewNodesIn is NewNodes for nodes in a VirtualNetwork, one on each host. They have
// the default Config.Tick.
func NewNodesIn(nw *VirtualNetwork, t testing.TB, writers int, change ...func(*hiqlite.Config)) []*Node {
	t.Helper()
	defaults := func(cfg *hiqlite.Config) { cfg.Tick = 0 }
	return startNodes(t, nw.Members(), writers, nw.Command, append([]func(*hiqlite.Config){defaults}, change...))
}

// Secret returns the path of a new file with a secret.
func Secret(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(rand.Text()), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func startNodes(t testing.TB, members []hiqlite.Member, writers int, command func(uint64) []string, change []func(*hiqlite.Config)) []*Node {
	t.Helper()
	dir, secret := t.TempDir(), Secret(t)
	var nodes []*Node
	for i := range members {
		cfg := hiqlite.Config{DataDir: filepath.Join(dir, fmt.Sprint(i+1)), NodeID: uint64(i + 1), Nodes: members, SecretFile: secret, Tick: 10 * time.Millisecond}
		for _, f := range change {
			f(&cfg)
		}
		var by []string
		if command != nil {
			by = command(cfg.NodeID)
		}
		nodes = append(nodes, StartNode(t, cfg, dir, writers, by...))
	}
	for _, node := range nodes {
		node.Ask("ready")
	}
	return nodes
}

// StartNode starts a node that keeps its logs in dir, with a command as in Start.
func StartNode(t testing.TB, cfg hiqlite.Config, dir string, writers int, command ...string) *Node {
	t.Helper()
	node := &Node{
		Config: cfg, t: t, writers: writers, command: command,
		acks: filepath.Join(dir, fmt.Sprintf("acks-%d", cfg.NodeID)),
		log:  filepath.Join(dir, fmt.Sprintf("log-%d", cfg.NodeID)),
	}
	node.Start()
	t.Cleanup(func() {
		node.Kill()
		if t.Failed() {
			log := node.Log()
			t.Logf("the end of the log of node %d:\n%s", cfg.NodeID, log[max(0, len(log)-16<<10):])
		}
	})
	return node
}

// Start starts the node again, after Kill.
func (n *Node) Start() {
	n.t.Helper()
	p, err := Start(nodeArgument{n.Config, n.acks, n.writers}, n.log, n.command...)
	if err != nil {
		n.t.Fatalf("starting node %d: %v", n.Config.NodeID, err)
	}
	n.Process = p
}

// Try sends a request, see NodeService, and returns its report, or ErrEnded.
func (n *Node) Try(method string, args ...any) (r Report, err error) {
	n.t.Helper()
	var argument any
	if len(args) > 0 {
		argument = args[0]
	}
	err = n.Call(method, argument, &r, 2*testrun.Patience)
	return r, err
}

// Ask is Try for a node that must be running and whose writers must not have failed.
func (n *Node) Ask(method string, args ...any) Report {
	n.t.Helper()
	r, err := n.Try(method, args...)
	if err != nil {
		n.t.Fatalf("node %d, %s: %v", n.Config.NodeID, method, err)
	}
	if len(r.Errors) > 0 {
		n.t.Fatalf("node %d, %s: %v", n.Config.NodeID, method, r.Errors)
	}
	return r
}

// WaitForWrites waits until each writer of the node has so many acknowledged writes
// more than now.
func (n *Node) WaitForWrites(more int64) {
	n.t.Helper()
	before := n.Ask("status").Acked
	testrun.WaitFor(n.t, fmt.Sprintf("the writers of node %d to go on", n.Config.NodeID), func() bool {
		for i, acked := range n.Ask("status").Acked {
			if acked < before[i]+more {
				return false
			}
		}
		return true
	})
}

// ForgetAcks removes the record of acknowledged writes. The node must not run.
func (n *Node) ForgetAcks() {
	n.t.Helper()
	if err := os.Remove(n.acks); err != nil {
		n.t.Fatal(err)
	}
}

// Acknowledged returns the writes that were acknowledged to the node's writers, each
// as the name of its writer and its number.
func (n *Node) Acknowledged() (writes []string) {
	n.t.Helper()
	text, err := os.ReadFile(n.acks)
	if err != nil {
		n.t.Fatal(err)
	}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		writes = append(writes, lines.Text())
	}
	return writes
}

// Leader returns the node that leads the SQL shard, when all running nodes agree
// on it.
func Leader(t testing.TB, nodes []*Node) (leader *Node) {
	t.Helper()
	testrun.WaitFor(t, "a leader that all nodes agree on", func() bool {
		leaders := map[uint64]bool{}
		for _, n := range nodes {
			leaders[n.Ask("status").Status.Leader] = true
		}
		if len(leaders) != 1 {
			return false
		}
		for _, n := range nodes {
			if leaders[n.Config.NodeID] {
				leader = n
			}
		}
		return leader != nil
	})
	return leader
}

// Others returns the nodes but one.
func Others(nodes []*Node, one *Node) (others []*Node) {
	for _, n := range nodes {
		if n != one {
			others = append(others, n)
		}
	}
	return others
}
