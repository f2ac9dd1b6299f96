package wire

import (
	"unsafe"

	"google.golang.org/protobuf/encoding/protowire"
)

// fields calls f for every field of a message: numbers come as n, bytes as data.
func fields(b []byte, f func(field protowire.Number, n uint64, data []byte) error) error {
	for len(b) > 0 {
		field, kind, used := protowire.ConsumeTag(b)
		if used < 0 {
			return errMalformed
		}
		b = b[used:]
		var n uint64
		var data []byte
		switch kind {
		case protowire.VarintType:
			n, used = protowire.ConsumeVarint(b)
		case protowire.Fixed64Type:
			n, used = protowire.ConsumeFixed64(b)
		case protowire.BytesType:
			data, used = protowire.ConsumeBytes(b)
		default:
			used = protowire.ConsumeFieldValue(field, kind, b)
		}
		if used < 0 {
			return errMalformed
		}
		if err := f(field, n, data); err != nil {
			return err
		}
		b = b[used:]
	}
	return nil
}

func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
