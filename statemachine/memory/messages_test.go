package memory

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	sm "github.com/lni/dragonboat/v4/statemachine"
	"pgregory.net/rapid"

	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/statemachine"
)

func newMessagesShard(t rapid.TB, r Retention) (*shard, *Messages) {
	s := newShard(t, func(c Config) *core { return &NewMessages(c, r).core })
	return s, s.machine.(*Messages)
}

func notify(channel, payload string) *wire.Command {
	return &wire.Command{Kind: wire.KindNotify, Channel: channel, Payload: []byte(payload)}
}

// drain reads all pending messages. It returns their indexes, and the index up to which
// messages were lost, or 0.
func drain(t rapid.TB, s *Subscription) (indexes []uint64, lost uint64) {
	t.Helper()
	for {
		messages, upTo, err := s.Next()
		if err != nil {
			if !errors.Is(err, ErrLagged) || upTo == 0 || messages != nil || lost != 0 || indexes != nil {
				t.Fatalf("the error is %v, up to %d, after the messages %v; before that, messages up to %d were lost", err, upTo, indexes, lost)
			}
			lost = upTo
			continue
		}
		if len(messages) == 0 {
			return indexes, lost
		}
		for _, m := range messages {
			if !matches(m.Channel, s.channel, s.prefix) {
				t.Fatalf("%+v is not a message of channel %q", m, s.channel)
			}
			indexes = append(indexes, m.Index)
		}
	}
}

// A messageModel has all messages, and which of them are kept.
type messageModel struct {
	all []*Message
	cut int    // how many are forgotten
	now uint64 // the clock; a single advance counts only up to a bound
}

func (m *messageModel) removeOldMessages(all bool) {
	bytes := 0
	for _, x := range m.all[m.cut:] {
		bytes += x.size()
	}
	for ; m.cut < len(m.all); m.cut++ {
		x, left := m.all[m.cut], len(m.all)-m.cut
		aged := m.now-x.at >= smallRetention.AgeMS
		if !aged && left <= smallRetention.Messages && bytes <= smallRetention.Bytes || left == 1 && !(aged && all) {
			return
		}
		bytes -= x.size()
	}
}

// The kept messages are within the limits of count, bytes and age, and there are no gaps
// between them. Each subscriber gets each message of its channels once and in order, or
// learns which ones it has missed.
func TestMessagesBehaveLikeAList(t *testing.T) {
	type subscriber struct {
		*Subscription
		read uint64 // index of the last message that it has read or lost
	}
	rapid.Check(t, func(t *rapid.T) {
		s, messages := newMessagesShard(t, smallRetention)
		m := &messageModel{}
		var subscribers []*subscriber
		check := func(x *subscriber) {
			var want []uint64
			lost := uint64(0)
			for _, msg := range m.all {
				switch {
				case msg.Index <= x.read || !matches(msg.Channel, x.channel, x.prefix):
				case msg.Index <= uint64(m.cut):
					lost = uint64(m.cut)
				default:
					want = append(want, msg.Index)
				}
			}
			got, gotLost := drain(t, x.Subscription)
			if !slices.Equal(got, want) || gotLost != lost {
				t.Fatalf("a subscriber of %q (prefix: %v) gets %v and lost %d, want %v and %d", x.channel, x.prefix, got, gotLost, want, lost)
			}
			if n := uint64(len(m.all)); x.read < n {
				x.read = n
			}
		}
		for range rapid.IntRange(1, 120).Draw(t, "steps") {
			switch rapid.IntRange(0, 11).Draw(t, "step") {
			case 0, 1:
				step := rapid.SampledFrom([]uint64{1, 100, 999, 1000, 5000, 60_000}).Draw(t, "advance")
				s.advance(step)
				m.now += min(step, 2*statemachine.MaxAdvanceInterval)
				m.removeOldMessages(true)
			case 2:
				from := uint64(len(m.all))
				var after *uint64
				if rapid.Bool().Draw(t, "after") {
					from = uint64(rapid.IntRange(0, len(m.all)+3).Draw(t, "from"))
					after = &from
				}
				x, index, ok := messages.Subscribe(rapid.SampledFrom([]string{"", "a", "ab", "b"}).Draw(t, "channel"), rapid.Bool().Draw(t, "prefix"), after)
				end := uint64(len(m.all))
				if ok != (from >= uint64(m.cut) && from <= end) || ok && index != from || from > end && index != end || from < uint64(m.cut) && index != uint64(m.cut) {
					t.Fatalf("subscribing after %d: %d, %v, while %d are forgotten", from, index, ok, m.cut)
				}
				if ok {
					subscribers = append(subscribers, &subscriber{x, from})
				}
			case 3, 4:
				if len(subscribers) > 0 {
					check(subscribers[rapid.IntRange(0, len(subscribers)-1).Draw(t, "subscriber")])
				}
			case 5:
				s.restore(s.snapshot())
			default:
				var commands []*wire.Command
				for range rapid.IntRange(1, 4).Draw(t, "messages") {
					c := messageCommand(t)
					commands = append(commands, c)
					if c.Kind == wire.KindNotify {
						m.all = append(m.all, &Message{Index: uint64(len(m.all)) + 1, Channel: c.Channel, Payload: string(c.Payload), TimeMS: c.TimeMS, at: m.now})
						m.removeOldMessages(false)
					}
				}
				s.do(commands...)
			}
			if len(messages.kept) != len(m.all)-m.cut || messages.forgotten != uint64(m.cut) || messages.last != uint64(len(m.all)) {
				t.Fatalf("%d messages from %d to %d are kept, want %d of %d", len(messages.kept), messages.forgotten, messages.last, len(m.all)-m.cut, len(m.all))
			}
			size := 0
			for i, x := range messages.kept {
				want := *m.all[m.cut+i]
				want.Seen = x.Seen
				size += x.size()
				if *x != want {
					t.Fatalf("message %d is %+v, want %+v", i, x, want)
				}
			}
			if messages.Size() != int64(size) {
				t.Fatalf("the size is %d bytes, want %d", messages.Size(), size)
			}
			for _, x := range subscribers {
				if len(x.pending) > 2*smallRetention.Messages+1 {
					t.Fatalf("%d messages are pending for a subscriber that has read all", len(x.pending))
				}
			}
		}
		for _, x := range subscribers {
			check(x)
			x.Close()
			x.Close()
		}
		if len(messages.exact)+len(messages.prefixes) > 0 {
			t.Fatalf("after all were closed there are subscribers: %v, %v", messages.exact, messages.prefixes)
		}
	})
}

var keepTen = Retention{Messages: 10, Bytes: 1 << 20, AgeMS: 60_000}

// A subscriber has not lagged if no message of its channel was lost, whatever was sent to
// other channels.
func TestQuietChannelsDoNotLag(t *testing.T) {
	s, messages := newMessagesShard(t, keepTen)
	quiet, _, _ := messages.Subscribe("quiet", false, nil)
	quieter, _, _ := messages.Subscribe("quieter", true, nil)
	loud, _, _ := messages.Subscribe("loud", false, nil)
	for i := range 100 {
		s.do(notify("loud", fmt.Sprint(i)))
	}
	s.do(notify("quiet", "x"))
	if got, lost := drain(t, quiet); lost != 0 || !slices.Equal(got, []uint64{101}) {
		t.Errorf("the subscriber gets %v and lost %d", got, lost)
	}
	if got, lost := drain(t, loud); lost != 91 || len(got) != 9 {
		t.Errorf("the subscriber of the other channel gets %v and lost %d", got, lost)
	}
	s.restore(s.snapshot())
	for _, x := range []*Subscription{quiet, quieter} {
		if got, lost := drain(t, x); lost != 0 || got != nil {
			t.Errorf("after a restore %q gets %v and lost %d", x.channel, got, lost)
		}
	}
}

// A machine that is late is restored from a snapshot. Its subscribers get the messages of the
// snapshot, each once, and learn if some were lost.
func TestSubscribersAfterARestore(t *testing.T) {
	for _, test := range []struct {
		name          string
		read, applied int // messages that were read, and that were applied, of 20
		keep          int
		want          []uint64
		lagged        bool
	}{
		{"nothing is lost", 2, 5, 18, seq(3, 20), false},
		{"all that were not read are lost", 2, 5, 10, seq(11, 20), true},
		{"some that were not read are lost", 2, 12, 14, seq(7, 20), true},
		{"some that were not applied are lost", 5, 5, 10, seq(11, 20), true},
		{"only some that were read are lost", 5, 5, 15, seq(6, 20), false},
		{"the machine was not late", 2, 20, 18, seq(3, 20), false},
	} {
		here, messages := newMessagesShard(t, Retention{Messages: 100, Bytes: 1 << 20, AgeMS: 60_000})
		there, _ := newMessagesShard(t, Retention{Messages: test.keep, Bytes: 1 << 20, AgeMS: 60_000})
		exact, _, _ := messages.Subscribe("channel", false, nil)
		prefix, _, _ := messages.Subscribe("ch", true, nil)
		other, _, _ := messages.Subscribe("other", false, nil)
		for i := range 20 {
			if i == test.read {
				drain(t, exact)
				drain(t, prefix)
			}
			if i < test.applied {
				here.do(notify("channel", fmt.Sprint(i)))
			}
			there.do(notify("channel", fmt.Sprint(i)))
		}
		if test.read == test.applied {
			drain(t, exact)
			drain(t, prefix)
		}
		drain(t, other)
		here.restore(there.snapshot())
		for _, x := range []*Subscription{exact, prefix} {
			select {
			case <-x.Ready():
			default:
				t.Errorf("%s: the subscriber is not ready", test.name)
			}
			got, lost := drain(t, x)
			if !slices.Equal(got, test.want) || (lost > 0) != test.lagged || lost > uint64(20-test.keep) {
				t.Errorf("%s: the subscriber gets %v and lost %d, want %v, lagged: %v", test.name, got, lost, test.want, test.lagged)
			}
		}
		// Messages that this machine has not applied may have been of any channel.
		if _, lost := drain(t, other); lost > 0 && 20-test.keep <= test.applied {
			t.Errorf("%s: the other channel lost %d", test.name, lost)
		}
		here.seq = 100
		here.do(notify("channel", "after"))
		if got, lost := drain(t, exact); lost != 0 || !slices.Equal(got, []uint64{21}) {
			t.Errorf("%s: after that it gets %v and lost %d", test.name, got, lost)
		}
	}
}

func seq(from, to uint64) (out []uint64) {
	for ; from <= to; from++ {
		out = append(out, from)
	}
	return out
}

// There is no subscription after an index that no message has yet, because the index must be
// that of another cluster.
func TestThereIsNoSubscriptionAhead(t *testing.T) {
	s, messages := newMessagesShard(t, keepTen)
	s.do(notify("c", "1"))
	after := uint64(3)
	if _, index, ok := messages.Subscribe("c", false, &after); ok || index != 1 {
		t.Fatalf("%d, %v", index, ok)
	}
}

// Next returns a limited number of messages at a time, and does not need a signal for each
// part.
func TestManyMessagesAreReadInParts(t *testing.T) {
	s, messages := newMessagesShard(t, DefaultRetention)
	x, _, _ := messages.Subscribe("c", false, nil)
	for i := range 3 * maxNext / 2 {
		c := notify("c", fmt.Sprint(i))
		c.Seen, c.TimeMS = wire.Seen{SQL: uint64(i), KV: uint64(i) / 2}, int64(-i)
		s.do(c)
	}
	first, _, err := x.Next()
	second, _, err2 := x.Next()
	if len(first) != maxNext || len(second) != maxNext/2 || err != nil || err2 != nil {
		t.Fatalf("the parts have %d and %d messages, %v, %v", len(first), len(second), err, err2)
	}
	for i, m := range append(first, second...) {
		if m.Payload != fmt.Sprint(i) || (m.Seen != wire.Seen{SQL: uint64(i), KV: uint64(i) / 2}) || m.TimeMS != int64(-i) || m.Index != uint64(i)+1 {
			t.Errorf("message %d is %+v", i, m)
		}
	}
}

// A message without a channel is not accepted, because its record would be taken for the
// first one of a snapshot.
func TestMessagesWithoutAChannel(t *testing.T) {
	s, _ := newMessagesShard(t, keepTen)
	s.do(notify("c", "1"), notify("", "2"), notify("c", "3"))
	want := s.state()
	b := s.snapshot()
	if s.refuses(b) {
		t.Fatalf("the snapshot is refused: %v", s.Err())
	}
	if got := s.state(); !slices.Equal(got, want) {
		t.Errorf("the restored state is\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// The error of a subscription that has lagged has an index after which a new subscription is
// possible, whatever was sent to other channels.
func TestLaggedSubscriptionsCanBeResumed(t *testing.T) {
	s, messages := newMessagesShard(t, keepTen)
	x, _, _ := messages.Subscribe("quiet", false, nil)
	s.do(notify("quiet", "1"))
	for range 30 {
		s.do(notify("loud", "x"))
	}
	_, lost, err := x.Next()
	if !errors.Is(err, ErrLagged) {
		t.Fatalf("the error is %v", err)
	}
	if _, _, ok := messages.Subscribe("quiet", false, &lost); !ok {
		t.Errorf("a subscription after message %d is not possible: messages up to %d are forgotten", lost, messages.forgotten)
	}
}

// A snapshot that is not read to its end changes nothing that subscribers see.
func TestAnUnfinishedRestoreChangesNothing(t *testing.T) {
	s, messages := newMessagesShard(t, DefaultRetention)
	x, _, _ := messages.Subscribe("c", false, nil)
	s.do(notify("c", "1"), notify("c", "2"))
	over := make(chan struct{})
	close(over) // as when the node closes
	if err := s.RecoverFromSnapshot(bytes.NewReader(s.snapshot()), nil, over); err != sm.ErrSnapshotStopped {
		t.Fatalf("the error is %v", err)
	}
	if got, lost := drain(t, x); lost != 0 || !slices.Equal(got, []uint64{1, 2}) {
		t.Errorf("the subscription gets %v and lost %d", got, lost)
	}
}

// A message was sent after a long time without a leader, and before the clock advance that
// counts that time. It is kept as long as any other message.
func TestMessagesAfterATimeWithoutALeader(t *testing.T) {
	s, m := newMessagesShard(t, DefaultRetention)
	s.advance(10_000)
	s.do(notify("c", "hello"))
	s.advance(16 * 60_000)
	if _, upTo, ok := m.Subscribe("c", false, new(uint64)); !ok {
		t.Fatalf("message %d is forgotten", upTo)
	}
	for range 15 * 6 {
		s.advance(10_000)
	}
	if _, _, ok := m.Subscribe("c", false, new(uint64)); ok {
		t.Error("the message is never forgotten")
	}
}
