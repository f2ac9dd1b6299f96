package faults

import (
	"fmt"
	"testing"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/tests/process"
)

// The process of the leader is killed again and again while writers run on all
// nodes. No writer on a survivor gets an error, and each acknowledged row is there once.
func TestKilledLeadersLoseNothing(t *testing.T) {
	t.Parallel()
	const writers = 8 // on each node: 16 survive each kill
	nodes := process.NewNodes(t, 3, writers)
	nodes[0].Ask("table")
	for _, n := range nodes {
		n.Ask("write")
	}
	for range testrun.Rounds(10, 20) {
		leader := process.Leader(t, nodes)
		leader.Kill()
		for _, n := range process.Others(nodes, leader) {
			n.WaitForWrites(2)
		}
		leader.Start()
		leader.Ask("ready")
		leader.Ask("write")
	}
	for _, n := range nodes {
		n.Ask("stop")
	}
	hash := ""
	for _, n := range nodes {
		n.Ask("ready")
		h := n.Ask("hash").Hash
		if hash != "" && h != hash {
			t.Errorf("node %d has other rows than another node", n.Config.NodeID)
		}
		hash = h
	}
	checkAcknowledged(t, nodes)
}

// The process of the leader is paused until another node leads, and is then resumed. The
// entries that it proposes late are not applied a second time.
func TestPausedLeadersRepeatNothing(t *testing.T) {
	t.Parallel()
	nodes := process.NewNodes(t, 3, 6)
	nodes[0].Ask("table")
	for _, n := range nodes {
		n.Ask("write")
	}
	for range 6 {
		leader := process.Leader(t, nodes)
		if err := leader.Pause(); err != nil {
			t.Fatal(err)
		}
		for _, n := range process.Others(nodes, leader) {
			n.WaitForWrites(5)
		}
		if err := leader.Resume(); err != nil {
			t.Fatal(err)
		}
		leader.Ask("ready")
	}
	for _, n := range nodes {
		n.Ask("stop")
	}
	checkAcknowledged(t, nodes)
}

// checkAcknowledged kills the processes, opens the nodes here, and compares the rows
// with the acknowledged writes.
func checkAcknowledged(t *testing.T, nodes []*process.Node) {
	t.Helper()
	var opened []*hiqlite.Node
	for _, n := range nodes {
		n.Kill()
		node, err := hiqlite.Open(testrun.Context(t), n.Config)
		if err != nil {
			t.Fatal(err)
		}
		defer node.Close()
		opened = append(opened, node)
	}
	if err := opened[0].Ready(testrun.Context(t)); err != nil {
		t.Fatal(err)
	}
	rows := map[string]int{}
	r, err := opened[0].DB().QueryContext(testrun.Context(t), "SELECT writer, n, count(*) FROM w GROUP BY writer, n")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for r.Next() {
		var writer string
		var n, count int
		if err := r.Scan(&writer, &n, &count); err != nil {
			t.Fatal(err)
		}
		rows[fmt.Sprintf("%s %d", writer, n)] = count
		if count != 1 {
			t.Errorf("write %d of %s was applied %d times", n, writer, count)
		}
	}
	if err := r.Err(); err != nil {
		t.Fatal(err)
	}
	acknowledged := 0
	for _, n := range nodes {
		for _, write := range n.Acknowledged() {
			acknowledged++
			if rows[write] == 0 {
				t.Errorf("%s was acknowledged and is lost", write)
			}
		}
	}
	t.Logf("%d writes acknowledged, %d rows", acknowledged, len(rows))
	if acknowledged == 0 {
		t.Error("nothing was acknowledged")
	}
}

// Nodes are killed while writers on all nodes write through TEMP objects. No writer on a
// survivor gets an error, each acknowledged row is there once, and all nodes have the same
// rows.
func TestKilledNodesAndTempObjects(t *testing.T) {
	t.Parallel()
	nodes := process.NewNodes(t, 3, 3)
	nodes[0].Ask("table")
	for _, n := range nodes {
		n.Ask("write-temp")
	}
	for i := range 6 {
		victim := nodes[i%len(nodes)]
		victim.Kill()
		for _, n := range process.Others(nodes, victim) {
			n.WaitForWrites(2)
		}
		victim.Start()
		victim.Ask("ready")
		victim.Ask("write-temp")
	}
	for _, n := range nodes {
		n.Ask("stop")
	}
	testrun.WaitFor(t, "the nodes to have the same rows", func() bool {
		hashes := map[string]bool{}
		for _, n := range nodes {
			n.Ask("ready")
			hashes[n.Ask("hash").Hash] = true
		}
		return len(hashes) == 1
	})
	if r := nodes[0].Ask("missing"); r.Count != 0 {
		t.Errorf("%d acknowledged rows are missing or there twice", r.Count)
	}
}
