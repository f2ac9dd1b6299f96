package faults

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/tests/process"
)

// peakMemory returns the most resident memory, in bytes, that a process ever had.
func peakMemory(t *testing.T, n *process.Node) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.PID()))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(text), "VmHWM:")
	kib, err := strconv.ParseInt(strings.Fields(after)[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

// A follower is cut off while the leader writes 1 MB/s. Then it receives, and answers, all
// delayed heartbeats at once. The leader must not send the missing entries again for each
// answer.
func TestLeadersMemoryIsBoundedWhenAFollowerReturns(t *testing.T) {
	t.Parallel()
	testrun.SkipUnderRace(t, testrun.MeasuresMemory)
	if runtime.GOOS != "linux" {
		t.Skip("reads /proc")
	}
	t.Run("packets are kept", func(t *testing.T) {
		t.Parallel()
		network := process.NewNetwork(t)
		nodes := process.NewNodes(t, 3, 1, network.Route)
		followerReturns(t, nodes, func(id uint64) { network.Cut(id, process.Inbound, process.LinkHeld) }, func(uint64) { network.Heal() })
	})
	t.Run("packets are dropped", func(t *testing.T) {
		t.Parallel()
		network, nodes := virtualCluster(t, 1)
		followerReturns(t, nodes, func(id uint64) { network.Cut(id, true) }, func(id uint64) { network.Cut(id, false) })
	})
}

func followerReturns(t *testing.T, nodes []*process.Node, cut, heal func(nodeID uint64)) {
	const rate, bound = 1 << 20, 150 << 20
	nodes[0].Ask("table")
	leader := process.Leader(t, nodes)
	follower := nodes[leader.Config.NodeID%3]
	before := peakMemory(t, leader)
	leader.Ask("load", rate)
	cut(follower.Config.NodeID)
	start := leader.Ask("status").Status.Applied
	testrun.WaitFor(t, "the follower to lack 15 MiB", func() bool {
		return leader.Ask("status").Status.Applied >= start+15<<20/process.LoadBytes
	})
	heal(follower.Config.NodeID)
	follower.Ask("ready")
	leader.Ask("stop")
	follower.Ask("ready")
	after := peakMemory(t, leader)
	t.Logf("the leader had %d MiB before, and %d MiB at most", before>>20, after>>20)
	if after > before+bound {
		t.Errorf("the leader needed %d MiB more memory than before, and %d are allowed", (after-before)>>20, bound>>20)
	}
	if h := leader.Ask("hash").Hash; follower.Ask("hash").Hash != h {
		t.Error("the follower has other rows than the leader")
	}
}
