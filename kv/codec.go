package kv

import "encoding/json"

// A Codec encodes the values of a bucket. Decode may keep and change the slice that
// it is given.
type Codec[V any] interface {
	Encode(V) ([]byte, error)
	Decode([]byte) (V, error)
}

// Bytes and String are codecs that store values unchanged.
var (
	Bytes  Codec[[]byte] = bytesCodec{}
	String Codec[string] = stringCodec{}
)

type jsonCodec[V any] struct{}

func (jsonCodec[V]) Encode(v V) ([]byte, error) { return json.Marshal(v) }

func (jsonCodec[V]) Decode(data []byte) (v V, err error) { return v, json.Unmarshal(data, &v) }

type bytesCodec struct{}

func (bytesCodec) Encode(b []byte) ([]byte, error) { return b, nil }
func (bytesCodec) Decode(b []byte) ([]byte, error) { return b, nil }

type stringCodec struct{}

func (stringCodec) Encode(s string) ([]byte, error) { return []byte(s), nil }
func (stringCodec) Decode(b []byte) (string, error) { return string(b), nil }
