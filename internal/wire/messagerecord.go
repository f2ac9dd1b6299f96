package wire

import "google.golang.org/protobuf/encoding/protowire"

// A MessagesRecord is the first record of the pubsub shard itself. The messages follow it.
type MessagesRecord struct {
	LastIndex     uint64 // the index of the last message that was published
	LastForgotten uint64 // the index of the last message that is not kept any more
}

func (*MessagesRecord) number() protowire.Number { return 13 }

func (r *MessagesRecord) appendFields(b []byte) []byte {
	b = appendUint(b, 1, r.LastIndex)
	return appendUint(b, 2, r.LastForgotten)
}

func (r *MessagesRecord) field(f protowire.Number, n uint64, _ []byte) error {
	switch f {
	case 1:
		r.LastIndex = n
	case 2:
		r.LastForgotten = n
	}
	return nil
}

// A MessageRecord has a message.
type MessageRecord struct {
	Index       uint64
	Channel     string
	Payload     string
	TimeMS      int64  // the sender's clock, Unix milliseconds
	Seen        Seen   // the highest indexes that commands had named when it was published
	PublishedAt uint64 // the session clock when it was published
}

func (*MessageRecord) number() protowire.Number { return 14 }

func (r *MessageRecord) appendFields(b []byte) []byte {
	b = appendUint(b, 1, r.Index)
	b = appendString(b, 2, r.Channel)
	b = appendString(b, 3, r.Payload)
	b = appendInt(b, 4, r.TimeMS)
	b = appendUint(b, 5, r.Seen.SQL)
	b = appendUint(b, 6, r.Seen.KV)
	return appendUint(b, 7, r.PublishedAt)
}

func (r *MessageRecord) field(f protowire.Number, n uint64, data []byte) error {
	switch f {
	case 1:
		r.Index = n
	case 2:
		r.Channel = string(data)
	case 3:
		r.Payload = string(data)
	case 4:
		r.TimeMS = protowire.DecodeZigZag(n)
	case 5:
		r.Seen.SQL = n
	case 6:
		r.Seen.KV = n
	case 7:
		r.PublishedAt = n
	}
	return nil
}
