package wire

import (
	"sort"

	"google.golang.org/protobuf/encoding/protowire"
)

// A Zone is the time zone of 'localtime' and 'utc'. It contains its rules, because the
// time zone data of computers differ.
type Zone struct {
	Name    string
	Offsets []Offset // ordered by From; the first one also applies to earlier times
}

// An Offset is how far a zone is ahead of UTC, from a time on.
type Offset struct{ From, Seconds int64 } // Unix seconds

// At returns how many seconds the zone is ahead of UTC at a time, in Unix seconds.
// A nil zone is UTC.
func (z *Zone) At(unix int64) int64 {
	if z == nil || len(z.Offsets) == 0 {
		return 0
	}
	n := sort.Search(len(z.Offsets), func(i int) bool { return z.Offsets[i].From > unix })
	return z.Offsets[max(0, n-1)].Seconds
}

func appendZone(b []byte, field protowire.Number, z *Zone) []byte {
	if z == nil {
		return b
	}
	b, at := openMessage(b, field)
	b = appendString(b, 1, z.Name)
	for _, o := range z.Offsets {
		var offset int
		b, offset = openMessage(b, 2)
		b = appendInt(b, 1, o.From)
		b = appendInt(b, 2, o.Seconds)
		b = closeMessage(b, offset)
	}
	return closeMessage(b, at)
}

// decodeZone decodes what appendZone wrote, keeping nothing of data.
func decodeZone(data []byte) (*Zone, error) {
	z := new(Zone)
	err := fields(data, func(f protowire.Number, _ uint64, data []byte) error {
		switch f {
		case 1:
			z.Name = string(data)
		case 2:
			z.Offsets = append(z.Offsets, Offset{})
			return fields(data, z.Offsets[len(z.Offsets)-1].field)
		}
		return nil
	})
	return z, err
}

func (o *Offset) field(f protowire.Number, n uint64, _ []byte) error {
	switch f {
	case 1:
		o.From = protowire.DecodeZigZag(n)
	case 2:
		o.Seconds = protowire.DecodeZigZag(n)
	}
	return nil
}
