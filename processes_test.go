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

// Nodes are killed while all add to a counter and publish messages, and while
// snapshots of that are written: no writer on a survivor sees an error, and each
// addition and message is there once.
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
		// What a killed process had in flight may be there or not.
		if most := acknowledged + kills*writers; r.Count < acknowledged || r.Count > most || r.Messages < acknowledged || r.Messages > most {
			t.Errorf("node %d counts %d, and has %d messages: %d were acknowledged, up to %d may be there", n.Config.NodeID, r.Count, r.Messages, acknowledged, most)
		}
	}
	t.Logf("%d acknowledged", acknowledged)
}
