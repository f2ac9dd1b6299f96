package hiqlite_test

import (
	"encoding/json"
	"testing"

	"github.com/hiqlite/hiqlite/tests/process"
)

// A compactingService is a node process that can also compact the logs of its
// in-memory shards, which is a hook of this package. Other tests with processes are
// in tests/faults.
type compactingService struct{ *process.NodeService }

func openCompacting(argument json.RawMessage) (process.Service, error) {
	s, err := process.OpenNode(argument)
	if err != nil {
		return nil, err
	}
	return compactingService{s}, nil
}

func (s compactingService) Do(method string, args json.RawMessage) (any, error) {
	if method != "compact" {
		return s.NodeService.Do(method, args)
	}
	if err := s.Node.CompactMemory(0); err != nil {
		s.Fail(err)
	}
	return s.Complete(process.Report{}), nil
}

// Nodes are killed while all nodes add to a counter and publish messages, and while
// snapshots of the in-memory shards are written. Writers on the other nodes get no error,
// and each acknowledged addition and message was applied once.
func TestKilledNodesCountOnce(t *testing.T) {
	t.Parallel()
	const writers, kills = 4, 6
	nodes := process.NewNodes(t, 3, writers)
	for _, n := range nodes {
		n.Ask("count")
	}
	for i := range kills {
		victim := nodes[i%len(nodes)]
		victim.Kill()
		for _, n := range process.Others(nodes, victim) {
			n.WaitForWrites(2)
			n.Ask("compact")
		}
		victim.Start()
		victim.Ask("ready")
		victim.Ask("count")
	}
	for _, n := range nodes {
		n.Ask("stop")
	}
	acknowledged := int64(0)
	for _, n := range nodes {
		acknowledged += int64(len(n.Acknowledged()))
	}
	for _, n := range nodes {
		n.Ask("ready")
		r := n.Ask("counted")
		// The commands that a killed process had not finished may have been applied.
		if most := acknowledged + kills*writers; r.Count < acknowledged || r.Count > most || r.Messages < acknowledged || r.Messages > most {
			t.Errorf("node %d counts %d additions and %d messages; %d were acknowledged, and at most %d can have been applied", n.Config.NodeID, r.Count, r.Messages, acknowledged, most)
		}
	}
	t.Logf("%d acknowledged", acknowledged)
}
