package transport

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"
)

// protocolVersion is the version of what connections carry. Nodes of different
// versions do not talk to each other.
const protocolVersion = 2

// A hello says who is at one end of a connection, and for what it is.
type hello struct {
	Version int
	Node    uint64
	// Instance is a random name of the process. It tells a node that has restarted
	// from a second process with the same node id.
	Instance string
	// Storage is a random name of the node's data folder. A node id with another
	// folder than before is a node that has lost its log, or one of another cluster.
	Storage string
	Address string // the host:port at which other nodes reach the node
	Lane    lane   // of the dialling side
}

// A lane is what a connection is for.
type lane string

const (
	bulkLane     lane = "bulk"   // entries, in order
	urgentLane   lane = "urgent" // messages that keep a leader; see link.go
	snapshotLane lane = "snapshot"
)

const maxHelloText = 300 // bytes of each text in a hello or a refusal that are accepted

func newInstance() string { return rand.Text() }

func (h hello) marshal() bytesOf {
	data, err := json.Marshal(h)
	if err != nil {
		panic(err) // the type has no field that cannot be marshalled
	}
	return data
}

// readHello decodes the hello of a peer. It accepts fields of later versions.
func readHello(payload []byte) (h hello, err error) {
	if err := json.Unmarshal(payload, &h); err != nil {
		return hello{}, errFrame
	}
	for _, text := range []string{h.Instance, h.Storage, h.Address, string(h.Lane)} {
		if len(text) > maxHelloText || !utf8.ValidString(text) {
			return hello{}, errFrame
		}
	}
	if h.Instance == "" || h.Node == 0 {
		return hello{}, errFrame
	}
	return h, nil
}

// A Refusal says why a node does not talk to another one.
type Refusal struct {
	Code   RefusalCode
	Reason string // a clause about the node that is refused: "node 2 runs already"
}

// A RefusalCode is a kind of refusal.
type RefusalCode string

const (
	RefusedVersion   RefusalCode = "version"   // the nodes speak different versions of the protocol
	RefusedNode      RefusalCode = "node"      // the node's id is not in the list of the other one, or is not the expected one
	RefusedDuplicate RefusalCode = "duplicate" // another process with the node's id is connected
	RefusedStorage   RefusalCode = "storage"   // the node had another data folder before
)

func (r *Refusal) Error() string { return r.Reason }

func refuse(code RefusalCode, format string, args ...any) *Refusal {
	return &Refusal{code, fmt.Sprintf(format, args...)}
}

func (r *Refusal) marshal() bytesOf {
	data, err := json.Marshal(Refusal{r.Code, r.Reason[:min(len(r.Reason), maxHelloText)]})
	if err != nil {
		panic(err) // the type has no field that cannot be marshalled
	}
	return data
}

// A refusedError is the refusal that this node has got from another one.
type refusedError struct {
	by hello // what is known of the node that refuses; Node may be 0
	*Refusal
}

func (e *refusedError) Error() string {
	return fmt.Sprintf("hiqlite: node %d refuses this node: %s", e.by.Node, e.Reason)
}

func (e *refusedError) Unwrap() error { return e.Refusal }

func readRefusal(payload []byte) (*Refusal, error) {
	var r Refusal
	if err := json.Unmarshal(payload, &r); err != nil || len(r.Reason) > maxHelloText || len(r.Code) > maxHelloText {
		return nil, errFrame
	}
	return &r, nil
}

// greet sends this side's hello, or the refusal of the peer.
func (c *conn) greet(h hello) error { return c.out.write(helloFrame, h.marshal()) }

// expectHello reads the peer's hello. If the peer refuses this node, the error is a
// refusedError.
func (c *conn) expectHello() (h hello, err error) {
	kind, payload, err := c.in.next(handshakeTimeout)
	if err != nil {
		return hello{}, err
	}
	switch kind {
	case helloFrame:
		return readHello(payload)
	case refusalFrame:
		r, err := readRefusal(payload)
		if err != nil {
			return hello{}, err
		}
		return hello{}, &refusedError{Refusal: r}
	}
	return hello{}, errFrame
}

// refuse tells the peer why this node does not talk to it.
func (c *conn) refuse(err error) {
	var r *Refusal
	if errors.As(err, &r) {
		c.out.write(refusalFrame, r.marshal())
	}
}
