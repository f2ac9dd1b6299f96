package memory

import (
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/hiqlite/hiqlite/internal/wire"
)

// Retention bounds the messages that are kept for subscribers that are slow or come
// back later.
type Retention struct {
	Messages int
	Bytes    int    // of channels and payloads
	AgeMS    uint64 // on the shard's clock, without the time for which there was no leader
}

// DefaultRetention keeps messages for longer than a restart of a program or a machine
// takes. At a high rate it holds those of some seconds.
var DefaultRetention = Retention{Messages: 65_536, Bytes: 64 << 20, AgeMS: 15 * 60_000}

// Messages is the machine of the pubsub shard: the last messages of all channels, in
// one order.
type Messages struct {
	core
	retention Retention

	messageLog
	restoring *messageLog // what a snapshot holds, while it is read

	exact    map[string]map[*Subscription]bool // to one channel, by its name
	prefixes map[*Subscription]bool
}

// A messageLog is the replicated state of Messages.
type messageLog struct {
	kept      []*Message // with the indexes forgotten+1 to last
	forgotten uint64     // index of the last message that is not kept any more; at most last
	last      uint64     // index of the last message; never decreases
	bytes     int        // sum of size over the kept messages
}

// A Message was published on a channel. It does not change.
type Message struct {
	Index   uint64
	Channel string
	Payload string
	TimeMS  int64     // the sender's clock
	Seen    wire.Seen // what the node has to have applied before it delivers the message
	at      uint64    // the session clock when it was applied
}

func (m *Message) size() int { return len(m.Channel) + len(m.Payload) }

// NewMessages returns a machine that holds nothing.
func NewMessages(cfg Config, r Retention) *Messages {
	m := &Messages{retention: r, exact: map[string]map[*Subscription]bool{}, prefixes: map[*Subscription]bool{}}
	m.start(cfg, m)
	return m
}

func (m *Messages) apply(c *wire.Command, _ *wire.Session[wire.Outcome]) wire.Outcome {
	if c.Kind != wire.KindNotify || c.Channel == "" {
		return wire.Outcome{Code: wire.UnknownCommand}
	}
	n := c.Notify()
	m.last++
	msg := &Message{Index: m.last, Channel: strings.Clone(n.Channel), Payload: string(n.Payload), TimeMS: n.TimeMS, Seen: m.seen, at: m.sessionClock}
	m.kept = append(m.kept, msg)
	m.bytes += msg.size()
	m.removeOldMessages()
	for s := range m.exact[msg.Channel] {
		s.push(msg.Index)
	}
	for s := range m.prefixes {
		if strings.HasPrefix(msg.Channel, s.channel) {
			s.push(msg.Index)
		}
	}
	return wire.Outcome{Index: msg.Index}
}

// removeOldMessages removes the messages beyond the retention, but always keeps the last one.
func (m *Messages) removeOldMessages() {
	n := 0
	for ; n < len(m.kept)-1; n++ {
		old := m.kept[n]
		if len(m.kept)-n <= m.retention.Messages && m.bytes <= m.retention.Bytes && m.sessionClock-old.at < m.retention.AgeMS {
			break
		}
		m.bytes -= old.size()
		m.forgotten = old.Index
		m.kept[n] = nil
	}
	m.kept = m.kept[n:]
}

// advance moves the clock, and removes the messages that have become too old.
func (m *Messages) advance(uint64) {
	m.removeOldMessages()
	if n := len(m.kept); n == 1 && m.sessionClock-m.kept[0].at >= m.retention.AgeMS {
		m.forgotten, m.bytes, m.kept = m.last, 0, nil
	}
}

func (m *Messages) sessionOpened(uint64, uint64) {}

// Size returns the bytes of the messages that are kept.
func (m *Messages) Size() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return int64(m.bytes)
}

// nextAdvance asks for an advance when the first message becomes too old. The age of
// a message counts from the advance before it, so it may be removed early, by at most
// 2*statemachine.MaxTickInterval.
func (m *Messages) nextAdvance() (atOnce bool, end uint64, any bool) {
	if len(m.kept) == 0 {
		return false, 0, false
	}
	return false, m.now + max(m.kept[0].at+m.retention.AgeMS, m.sessionClock) - m.sessionClock, true
}

func (m *Messages) freeze() iter.Seq[wire.Record] {
	head := &wire.MessagesRecord{LastIndex: m.last, LastForgotten: m.forgotten}
	kept := slices.Clone(m.kept)
	return func(yield func(wire.Record) bool) {
		if !yield(head) {
			return
		}
		for _, x := range kept {
			if !yield(&wire.MessageRecord{Index: x.Index, Channel: x.Channel, Payload: x.Payload, TimeMS: x.TimeMS, Seen: x.Seen, PublishedAt: x.at}) {
				return
			}
		}
	}
}

func (m *Messages) beginRestore() { m.restoring = new(messageLog) }

func (m *Messages) restore(r wire.Record) error { return m.restoring.restore(r) }

func (m *messageLog) restore(r wire.Record) error {
	switch r := r.(type) {
	case *wire.MessagesRecord:
		m.last, m.forgotten = r.LastIndex, r.LastForgotten
	case *wire.MessageRecord:
		x := &Message{r.Index, r.Channel, r.Payload, r.TimeMS, r.Seen, r.PublishedAt}
		m.kept = append(m.kept, x)
		m.bytes += x.size()
	default:
		return fmt.Errorf("a %T in a snapshot of the pubsub shard", r)
	}
	return nil
}

func (m *Messages) endRestore() error {
	next, before := m.restoring, m.last
	m.restoring = nil
	for i, x := range next.kept {
		if x.Index != next.forgotten+1+uint64(i) {
			return fmt.Errorf("the snapshot has message %d after message %d", x.Index, next.forgotten+uint64(i))
		}
	}
	if uint64(len(next.kept)) != next.last-next.forgotten {
		return fmt.Errorf("the snapshot has %d messages instead of %d", len(next.kept), next.last-next.forgotten)
	}
	m.messageLog = *next
	// Subscribers continue after the last message that they have received, or could
	// have received before.
	all := slices.Collect(maps.Keys(m.prefixes))
	for _, channel := range m.exact {
		for s := range channel {
			all = append(all, s)
		}
	}
	for _, s := range all {
		s.mu.Lock()
		after := max(s.seen, before)
		s.mu.Unlock()
		m.fill(s, after)
	}
	return nil
}

// fill gives s the kept messages after one. The caller holds m.mu.
func (m *Messages) fill(s *Subscription, after uint64) {
	if after < m.forgotten {
		s.lag(m.forgotten)
		after = m.forgotten
	}
	if after >= m.last {
		return
	}
	for _, x := range m.kept[after-m.forgotten:] {
		if matches(x.Channel, s.channel, s.prefix) {
			s.push(x.Index)
		}
	}
}

// A Subscription receives the messages of a channel, or of all channels with a prefix,
// each once and in order.
type Subscription struct {
	messages *Messages
	channel  string
	prefix   bool
	ready    chan struct{} // capacity 1: has a value when Next has something to return

	mu      sync.Mutex
	pending []uint64 // indexes of the messages that Next has not yet returned
	seen    uint64   // index of the last message that was added to pending
	lost    uint64   // messages up to this index were forgotten before they were read; 0: none
}

// Subscribe returns a subscription to the messages after *after or, if after is nil,
// to those from now on, and the index of the message after which it begins. The caller
// must Close it.
//
// ok is false if messages after *after have been forgotten; index is the last one that
// has. ok is also false if *after is beyond the last message; index is the last one.
func (m *Messages) Subscribe(channel string, prefix bool, after *uint64) (s *Subscription, index uint64, ok bool) {
	s = &Subscription{messages: m, channel: channel, prefix: prefix, ready: make(chan struct{}, 1)}
	m.mu.Lock()
	defer m.mu.Unlock()
	from := m.last
	if after != nil {
		if *after < m.forgotten {
			return nil, m.forgotten, false
		}
		if *after > m.last {
			return nil, m.last, false
		}
		from = *after
	}
	s.seen = from
	m.fill(s, from)
	if prefix {
		m.prefixes[s] = true
		return s, from, true
	}
	if m.exact[channel] == nil {
		m.exact[channel] = map[*Subscription]bool{}
	}
	m.exact[channel][s] = true
	return s, from, true
}

// Close ends the subscription. It may be called more than once.
func (s *Subscription) Close() {
	m := s.messages
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.prefixes, s)
	if delete(m.exact[s.channel], s); len(m.exact[s.channel]) == 0 {
		delete(m.exact, s.channel)
	}
}

// push adds a message to the pending ones.
func (s *Subscription) push(index uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if index <= s.seen { // after a snapshot, it was added before
		return
	}
	s.seen = index
	if len(s.pending) > 2*s.messages.retention.Messages {
		s.dropForgotten() // at least half of them
		s.pending = slices.Clone(s.pending)
	}
	s.pending = append(s.pending, index)
	s.signal()
}

// dropForgotten removes the pending messages that have been forgotten. The caller holds
// s.mu and s.messages.mu.
func (s *Subscription) dropForgotten() {
	n, _ := slices.BinarySearch(s.pending, s.messages.forgotten+1)
	if n > 0 {
		s.lost = s.messages.forgotten
		s.pending = s.pending[n:]
	}
}

// lag records that the messages up to an index are lost to the subscriber.
func (s *Subscription) lag(upTo uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost, s.seen, s.pending = upTo, max(s.seen, upTo), nil
	s.signal()
}

func (s *Subscription) signal() {
	select {
	case s.ready <- struct{}{}:
	default:
	}
}

// maxNext bounds how many messages Next returns at a time.
const maxNext = 128

// Next returns the next messages. It does not wait: if there are none it returns none,
// and Ready says when to call it again. If messages were forgotten before they were
// read, the error is ErrLagged, once; lost is the index of the last message, of whatever
// channel, that is forgotten, and the following calls return those after it.
func (s *Subscription) Next() (messages []*Message, lost uint64, err error) {
	m := s.messages
	m.mu.Lock()
	defer m.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dropForgotten()
	if s.lost > 0 {
		s.lost = 0
		return nil, m.forgotten, ErrLagged
	}
	n := min(len(s.pending), maxNext)
	for _, index := range s.pending[:n] {
		messages = append(messages, m.kept[index-m.forgotten-1])
	}
	s.pending = s.pending[n:]
	return messages, 0, nil
}

// Ready returns a channel that receives a value when Next may have something to
// return.
func (s *Subscription) Ready() <-chan struct{} { return s.ready }
