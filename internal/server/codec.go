package server

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// strictJSON is the codec of JSON that refuses unknown fields, which connect's own
// ignores: a mistyped field of a write must not be a write of something else.
type strictJSON struct {
	name     string
	counters *counters
}

var errEmpty = errors.New("an empty body is not a JSON object; send {}")

func (c strictJSON) Name() string { return c.name }

func (c strictJSON) Marshal(m any) ([]byte, error) {
	p, ok := m.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("hiqlite: %T is not a message", m)
	}
	return protojson.Marshal(p)
}

func (c strictJSON) Unmarshal(data []byte, m any) error {
	p, ok := m.(proto.Message)
	if !ok {
		return fmt.Errorf("hiqlite: %T is not a message", m)
	}
	err := errEmpty
	if len(data) > 0 {
		err = protojson.Unmarshal(data, p)
	}
	if err != nil {
		c.counters.malformed.Add(1)
	}
	return err
}
