package memory

import (
	"reflect"
	"testing"

	"github.com/hiqlite/hiqlite/internal/wire"
)

func remote(session, sequence uint64, c *wire.Command) *wire.Command {
	c.Origin = &wire.Origin{Session: session, Sequence: sequence}
	return c
}

// A remote client that got no answer sends its command again, through another node.
func TestCopiesOfARemoteCommandAreAppliedOnce(t *testing.T) {
	s, _ := newKVShard(t)
	client, other := s.open(1, 0, 0), s.open(2, 2, 1)
	add := func(sequence uint64) *wire.Command {
		return remote(client, sequence, &wire.Command{Kind: wire.KindCounterAdd, Bucket: "b", Key: "k", Delta: 5})
	}
	want := s.do(add(1))[0]
	check := func(when string, session, sequence uint64) {
		t.Helper()
		got := s.doAs(session, sequence, add(1), add(2), add(2), add(1))
		if !reflect.DeepEqual(got[0], want) || got[1].Counter != 10 || !reflect.DeepEqual(got[1], got[2]) || got[3].Admission != wire.StaleSequence {
			t.Errorf("%s: the outcomes are %+v", when, got)
		}
	}
	check("through another node", other, 1)
	s.restore(s.snapshot())
	if got := s.doAs(other, 2, add(2), add(1)); got[0].Counter != 10 || got[1].Admission != wire.StaleSequence {
		t.Errorf("after a snapshot: the outcomes are %+v", got)
	}
	if got := s.doAs(other, 3, remote(999, 1, put("b", "x", "y")))[0]; got.Admission != wire.UnknownSession {
		t.Errorf("of an unknown session: the outcome is %+v", got)
	}
}

// A lock of a remote client belongs to the client, and not to the node that it was
// acquired through.
func TestLocksOfRemoteClientsSurviveARestartOfTheNode(t *testing.T) {
	s, _ := newLocksShard(t)
	client, node := s.open(1, 0, 0), s.open(2, 2, 1)
	s.doAs(node, 1, remote(client, 1, lock(5, 1, "k", 10_000)), lock(6, 1, "l", 10_000))
	again := s.open(3, 2, 2)
	got := s.doAs(again, 1, lock(7, 1, "k", 10_000), lock(7, 2, "l", 10_000))
	if got[0].Code != wire.Waits || got[1].Code != wire.Done {
		t.Errorf("after the node's restart, the locks of the client and of the node are %+v", got)
	}
}
