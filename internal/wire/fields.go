package wire

import (
	"unsafe"

	"google.golang.org/protobuf/encoding/protowire"
)

// fields calls f for every field of a message. n has the value of a number, and data
// that of a string or message.
func fields(b []byte, f func(field protowire.Number, n uint64, data []byte) error) error {
	for len(b) > 0 {
		field, n, data, rest, err := next(b)
		if err != nil {
			return err
		}
		if err := f(field, n, data); err != nil {
			return err
		}
		b = rest
	}
	return nil
}

// next returns the first field of b, and the rest of b.
func next(b []byte) (field protowire.Number, n uint64, data, rest []byte, err error) {
	var kind protowire.Type
	used := 1
	if tag := b[0]; tag < 0x80 && tag >= 8 { // as most are
		field, kind = protowire.Number(tag>>3), protowire.Type(tag&7)
	} else if field, kind, used = protowire.ConsumeTag(b); used < 0 {
		return 0, 0, nil, nil, errMalformed
	}
	b = b[used:]
	switch kind {
	case protowire.BytesType:
		if len(b) > 0 && b[0] < 0x80 && len(b) > int(b[0]) { // short, as most are
			used = 1 + int(b[0])
			data = b[1:used:used]
			break
		}
		data, used = protowire.ConsumeBytes(b)
	case protowire.VarintType:
		n, used = protowire.ConsumeVarint(b)
	case protowire.Fixed64Type:
		n, used = protowire.ConsumeFixed64(b)
	default:
		used = protowire.ConsumeFieldValue(field, kind, b)
	}
	if used < 0 {
		return 0, 0, nil, nil, errMalformed
	}
	return field, n, data, b[used:], nil
}

// stringOf returns a string that shares the memory of b.
func stringOf(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
