package memory

import (
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"

	"github.com/hiqlite/hiqlite/internal/wire"
)

// Retention says how much is kept of what was told, for those who come back or
// are slow.
type Retention struct {
	Messages int
	Bytes    int    // of channels and payloads
	AgeMS    uint64 // of the shard's ticks
}

// DefaultRetention is some seconds at a high rate, and longer than a restart of
// a program or a machine takes.
var DefaultRetention = Retention{Messages: 65_536, Bytes: 64 << 20, AgeMS: 15 * 60_000}

// Messages is the replica of the pubsub shard: the last messages of all
// channels, in one order.
type Messages struct {
	memory
	retention Retention

	told
	restoring *told

	exact    map[string]map[*Subscription]bool
	prefixes map[*Subscription]bool
}

// told is what the replicas share.
type told struct {
	tail  []*Message // from index cut+1 on, without gaps
	cut   uint64     // the last message that was forgotten
	last  uint64
	bytes int
}

// A Message is one that was told to a channel. It does not change.
type Message struct {
	Index   uint64
	Channel string
	Payload string
	TimeMS  int64     // the sender's clock
	Seen    wire.Seen // what has to be applied before it is told
	pulse   uint64    // when it came
}

func (m *Message) size() int { return len(m.Channel) + len(m.Payload) }

// NewMessages returns an empty replica.
func NewMessages(cfg Config, r Retention) *Messages {
	m := &Messages{retention: r, exact: map[string]map[*Subscription]bool{}, prefixes: map[*Subscription]bool{}}
	m.start(cfg, m)
	return m
}

func (m *Messages) apply(c *wire.Command, _ *wire.Session[wire.Outcome]) wire.Outcome {
	if c.Kind != wire.Notify || c.Name == "" {
		return wire.Outcome{Code: wire.Foreign}
	}
	m.last++
	msg := &Message{Index: m.last, Channel: strings.Clone(c.Name), Payload: string(c.Value), TimeMS: c.Number, Seen: m.seen, pulse: m.pulse}
	m.tail = append(m.tail, msg)
	m.bytes += msg.size()
	m.forget()
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

// forget forgets what is beyond the retention, but for the last message.
func (m *Messages) forget() {
	n := 0
	for ; n < len(m.tail)-1; n++ {
		old := m.tail[n]
		if len(m.tail)-n <= m.retention.Messages && m.bytes <= m.retention.Bytes && m.pulse-old.pulse < m.retention.AgeMS {
			break
		}
		m.bytes -= old.size()
		m.cut = old.Index
		m.tail[n] = nil
	}
	m.tail = m.tail[n:]
}

func (m *Messages) tick(uint64) {
	m.forget()
	if n := len(m.tail); n == 1 && m.pulse-m.tail[0].pulse >= m.retention.AgeMS {
		m.cut, m.bytes, m.tail = m.last, 0, nil
	}
}

func (m *Messages) opened(uint64, uint64) {}

// Size returns the bytes of the messages that are kept.
func (m *Messages) Size() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return int64(m.bytes)
}

// next asks for a tick when the first message gets too old. Its age counts from
// the tick before it, so it may go early, by 2*statemachine.MaxTickInterval at most: the pulse does not
// count for how long there was no leader.
func (m *Messages) next() (atOnce bool, end uint64, any bool) {
	if len(m.tail) == 0 {
		return false, 0, false
	}
	return false, m.ticks + max(m.tail[0].pulse+m.retention.AgeMS, m.pulse) - m.pulse, true
}

func (m *Messages) freeze() iter.Seq[*wire.Record] {
	head := &wire.Record{Kind: wire.RecordMessage, Version: m.last, ID: m.cut} // no message has no channel
	tail := slices.Clone(m.tail)
	return func(yield func(*wire.Record) bool) {
		if !yield(head) {
			return
		}
		for _, x := range tail {
			if !yield(&wire.Record{Kind: wire.RecordMessage, Name: x.Channel, Value: x.Payload, Version: x.Index, Number: x.TimeMS, Seen: x.Seen, Ticks: x.pulse}) {
				return
			}
		}
	}
}

func (m *Messages) begin() { m.restoring = new(told) }

func (m *Messages) restore(r *wire.Record) error { return m.restoring.restore(r) }

func (m *told) restore(r *wire.Record) error {
	if r.Kind != wire.RecordMessage {
		return fmt.Errorf("a record of kind %d", r.Kind)
	}
	if r.Name == "" {
		m.last, m.cut = r.Version, r.ID
		return nil
	}
	x := &Message{r.Version, r.Name, r.Value, r.Number, r.Seen, r.Ticks}
	m.tail = append(m.tail, x)
	m.bytes += x.size()
	return nil
}

func (m *Messages) restored() error {
	next, before := m.restoring, m.last
	m.restoring = nil
	for i, x := range next.tail {
		if x.Index != next.cut+1+uint64(i) {
			return fmt.Errorf("the snapshot has message %d behind message %d", x.Index, next.cut+uint64(i))
		}
	}
	if uint64(len(next.tail)) != next.last-next.cut {
		return fmt.Errorf("the snapshot has %d messages instead of %d", len(next.tail), next.last-next.cut)
	}
	m.told = *next
	// Subscribers go on behind what they could have been told of.
	all := m.prefixed()
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

func (m *Messages) prefixed() (all []*Subscription) {
	for s := range m.prefixes {
		all = append(all, s)
	}
	return all
}

// fill gives s the messages behind one that are kept. The caller holds m.mu.
func (m *Messages) fill(s *Subscription, after uint64) {
	if after < m.cut {
		s.lag(m.cut)
		after = m.cut
	}
	if after >= m.last {
		return
	}
	for _, x := range m.tail[after-m.cut:] {
		if matches(x.Channel, s.channel, s.prefix) {
			s.push(x.Index)
		}
	}
}

// A Subscription gets the messages of a channel, or of all channels whose names
// begin alike, each once and in order.
type Subscription struct {
	messages *Messages
	channel  string
	prefix   bool
	ready    chan struct{} // capacity 1: there is something

	mu      sync.Mutex
	pending []uint64 // indexes of messages to come
	seen    uint64   // the last one that was pending
	lost    uint64   // messages up to this one were forgotten before they were read; 0: none
}

// Subscribe returns a subscription to the messages behind one, or, if after is
// nil, to those from now on, and the message behind which it begins. ok is false
// if messages behind after are forgotten, up to the one that it returns then, or
// if after is beyond the last one, which it returns then. The caller must Close
// it.
func (m *Messages) Subscribe(channel string, prefix bool, after *uint64) (s *Subscription, index uint64, ok bool) {
	s = &Subscription{messages: m, channel: channel, prefix: prefix, ready: make(chan struct{}, 1)}
	m.mu.Lock()
	defer m.mu.Unlock()
	from := m.last
	if after != nil {
		if *after < m.cut {
			return nil, m.cut, false
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

// Close ends the subscription. Idempotent.
func (s *Subscription) Close() {
	m := s.messages
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.prefixes, s)
	if delete(m.exact[s.channel], s); len(m.exact[s.channel]) == 0 {
		delete(m.exact, s.channel)
	}
}

func (s *Subscription) push(index uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if index <= s.seen { // told again, by a snapshot
		return
	}
	s.seen = index
	if len(s.pending) > 2*s.messages.retention.Messages {
		s.drop() // half of them, at least
		s.pending = slices.Clone(s.pending)
	}
	s.pending = append(s.pending, index)
	s.signal()
}

// drop drops what is pending and was forgotten. The caller holds mu, and that of
// the messages.
func (s *Subscription) drop() {
	n, _ := slices.BinarySearch(s.pending, s.messages.cut+1)
	if n > 0 {
		s.lost = s.messages.cut
		s.pending = s.pending[n:]
	}
}

// lag says that messages up to one are gone.
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

// atOnce bounds how many messages Next takes at a time.
const atOnce = 128

// Next returns the next messages without waiting, or none if there are none yet;
// Ready tells when to call it again. If messages were forgotten before they were
// read, the error is ErrLagged, once, and lost is the last one that is forgotten
// of all channels: what is behind it is there.
func (s *Subscription) Next() (messages []*Message, lost uint64, err error) {
	m := s.messages
	m.mu.Lock()
	defer m.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop()
	if s.lost > 0 {
		s.lost = 0
		return nil, m.cut, ErrLagged
	}
	n := min(len(s.pending), atOnce)
	for _, index := range s.pending[:n] {
		messages = append(messages, m.tail[index-m.cut-1])
	}
	s.pending = s.pending[n:]
	return messages, 0, nil
}

// Ready returns a channel that gets a value when there may be something for the
// one who calls Next.
func (s *Subscription) Ready() <-chan struct{} { return s.ready }
