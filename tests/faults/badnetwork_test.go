package faults

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/tests/process"
)

// These tests measure, with the default tick, how long writes wait when nodes or the
// network fail. They log what they have measured, and allow a multiple of what an
// idle machine takes.

// virtualCluster starts three nodes with the default tick in a VirtualNetwork. It skips
// the test, and says what is missing, where that cannot be made.
func virtualCluster(t *testing.T, writers int) (*process.VirtualNetwork, []*process.Node) {
	t.Helper()
	if testing.Short() {
		t.Skip("it takes half a minute")
	}
	network, err := process.NewVirtualNetwork(t, 3)
	if err != nil {
		t.Skipf("no virtual network: %v", err)
	}
	return network, process.NewNodesIn(network, t, writers)
}

// median returns the median and the maximum.
func median(all []time.Duration) string {
	if slices.Sort(all); len(all) == 0 {
		return "nothing"
	}
	return fmt.Sprintf("median %v, longest %v of %d", all[len(all)/2].Round(time.Millisecond), all[len(all)-1].Round(time.Millisecond), len(all))
}

// The leader is killed, or cut off without a word. The others write on after an
// election, and the former leader takes part again soon after it has returned.
func TestWritesGoOnWithoutTheLeader(t *testing.T) {
	t.Parallel()
	for _, fault := range []string{"kill", "cut"} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			network, nodes := virtualCluster(t, 1)
			nodes[0].Ask("table")
			for _, n := range nodes {
				n.Ask("write")
			}
			var gaps, returns []time.Duration
			for range testrun.Rounds(4, 20) {
				leader := process.Leader(t, nodes)
				others := process.Others(nodes, leader)
				for _, n := range others {
					n.WaitForWrites(5)
					n.Ask("measure")
				}
				if fault == "kill" {
					leader.Kill()
				} else {
					network.Cut(leader.Config.NodeID, true)
				}
				for _, n := range others {
					n.WaitForWrites(3)
					gaps = append(gaps, n.Ask("measure").Measured.Gap)
				}
				if fault == "kill" {
					leader.Start()
				} else {
					time.Sleep(5 * time.Second) // so that TCP's pauses have grown
					network.Cut(leader.Config.NodeID, false)
				}
				began := time.Now()
				leader.Ask("ready")
				returns = append(returns, time.Since(began))
				if fault == "kill" {
					leader.Ask("write")
				}
			}
			t.Logf("%s: writes waited %s; the node was back after %s", fault, median(gaps), median(returns))
			if longest := slices.Max(gaps); longest > 6*time.Second {
				t.Errorf("writes waited %v", longest)
			}
			if longest := slices.Max(returns); longest > 5*time.Second {
				t.Errorf("a node was back after %v", longest)
			}
		})
	}
}

// Each node is closed and started again, one after the other: the others write on
// without a pause, because leadership is handed over before.
func TestRollingRestart(t *testing.T) {
	t.Parallel()
	_, nodes := virtualCluster(t, 1)
	nodes[0].Ask("table")
	for _, n := range nodes {
		n.Ask("write")
	}
	var gaps, returns []time.Duration
	for range testrun.Rounds(2, 10) {
		for _, node := range nodes {
			others := process.Others(nodes, node)
			for _, n := range others {
				n.WaitForWrites(5)
				n.Ask("measure")
			}
			node.Ask("stop")
			node.Close()
			node.Start()
			began := time.Now()
			node.Ask("ready")
			returns = append(returns, time.Since(began))
			for _, n := range others {
				n.WaitForWrites(1)
				gaps = append(gaps, n.Ask("measure").Measured.Gap)
			}
			node.Ask("write")
		}
	}
	t.Logf("writes waited %s; a restarted node was back after %s", median(gaps), median(returns))
	if longest := slices.Max(gaps); longest > 2*time.Second {
		t.Errorf("writes waited %v", longest)
	}
}

// A part of the packets is lost, in both directions.
func TestLostPackets(t *testing.T) {
	t.Parallel()
	for _, loss := range []float64{0.1, 0.3} {
		t.Run(fmt.Sprint(loss), func(t *testing.T) {
			t.Parallel()
			network, nodes := virtualCluster(t, 4)
			nodes[0].Ask("table")
			for _, n := range nodes {
				n.Ask("write")
				n.WaitForWrites(5)
			}
			leader := process.Leader(t, nodes)
			leader.Ask("measure")
			network.Set(process.Conditions{Loss: loss})
			changes, last := 0, leader.Config.NodeID
			for end := time.Now().Add(testrun.Length(20*time.Second, time.Minute)); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
				now := leader.Ask("status").Status.Leader
				if now != last && now != 0 {
					changes++
				}
				last = now
			}
			m := leader.Ask("measure").Measured
			t.Logf("%.0f %% lost: %d writes, of which half took %v; the longest time without one was %v; the leader changed %d times",
				100*loss, m.Writes, m.P50, m.Gap, changes)
			if loss < 0.2 && changes > 0 {
				t.Errorf("the leader changed %d times", changes)
			}
			if m.Gap > 15*time.Second {
				t.Errorf("no write for %v", m.Gap)
			}
			network.Set(process.Conditions{})
		})
	}
}

// Each packet takes 50 ms. A write at the leader takes a round trip, and one at
// another node two. While 16 others write, it may come in the middle of a round.
func TestDistantNodes(t *testing.T) {
	t.Parallel()
	const delay = 50 * time.Millisecond
	for _, others := range []string{"nobody", "16 others on the same node", "16 others on all nodes"} {
		t.Run(others, func(t *testing.T) {
			t.Parallel()
			writers := 16
			if others == "16 others on all nodes" {
				writers = 5
			}
			network, nodes := virtualCluster(t, writers)
			nodes[0].Ask("table")
			leader := process.Leader(t, nodes)
			follower := process.Others(nodes, leader)[0]
			network.Set(process.Conditions{Delay: delay})
			defer network.Set(process.Conditions{})
			for _, n := range []*process.Node{leader, follower} {
				writing := map[string][]*process.Node{"16 others on the same node": {n}, "16 others on all nodes": nodes}[others]
				for _, w := range writing {
					w.Ask("write")
					w.WaitForWrites(1)
				}
				m := n.Ask("probe", testrun.Rounds(20, 100)).Measured
				for _, w := range writing {
					w.Ask("stop")
				}
				roundTrips := 2 * delay
				if n != leader {
					roundTrips *= 2
				}
				t.Logf("%s: at node %d (node %d leads) half of the writes took %v, the longest %v", others, n.Config.NodeID, leader.Config.NodeID, m.P50.Round(time.Millisecond), m.Max.Round(time.Millisecond))
				if m.P50 > 3*roundTrips {
					t.Errorf("half of the writes took %v", m.P50)
				}
			}
		})
	}
}

// The nodes are far apart, so that many entries of each are in flight. A part of the
// packets is lost, the leader is killed and nodes are cut off, again and again. No
// acknowledged write is lost, and none is applied twice or before an earlier one of its
// writer, not even one that the writer gave up.
func TestDistantNodesKeepTheOrder(t *testing.T) {
	t.Parallel()
	const writers = 6 // on each node
	network, nodes := virtualCluster(t, writers)
	nodes[0].Ask("table")
	network.Set(process.Conditions{Delay: 25 * time.Millisecond, Loss: 0.01})
	for _, n := range nodes {
		n.Ask("write-impatient")
		n.WaitForWrites(5)
	}
	for round := range testrun.Rounds(4, 20) {
		leader := process.Leader(t, nodes)
		others := process.Others(nodes, leader)
		cut := others[round%2]
		switch round % 4 {
		case 0, 2:
			leader.Kill()
		case 1: // it forwards what it proposes, and hears of nothing
			network.Cut(cut.Config.NodeID, true)
			others = process.Others(nodes, cut)
		case 3:
			network.Cut(leader.Config.NodeID, true)
			cut = leader
		}
		for _, n := range others {
			n.WaitForWrites(5)
		}
		if round%2 == 0 {
			leader.Start()
			leader.Ask("ready")
			leader.Ask("write-impatient")
		} else {
			network.Cut(cut.Config.NodeID, false)
		}
		for _, n := range nodes {
			n.WaitForWrites(5)
		}
	}
	network.Set(process.Conditions{})
	hashes := map[string]bool{}
	for _, n := range nodes {
		n.Ask("stop")
	}
	for _, n := range nodes {
		n.Ask("ready")
		hashes[n.Ask("hash").Hash] = true
	}
	if len(hashes) != 1 {
		t.Error("the nodes have different rows")
	}
	rows, missing, disordered := nodes[0].Ask("rows").Count, nodes[0].Ask("missing").Count, nodes[0].Ask("disordered").Count
	t.Logf("%d rows", rows)
	if missing != 0 || disordered != 0 {
		t.Errorf("%d acknowledged writes are not there once, and %d were applied twice or out of order", missing, disordered)
	}
}
