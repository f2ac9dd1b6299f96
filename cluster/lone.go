package cluster

import (
	"context"
	"errors"

	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/raftio"
)

// loneTransport is the transport of a cluster of one node. It opens no port
// and connects to nobody: such a node has nothing to say to the network, and
// nobody has anything to say to it.
type loneTransport struct{}

var (
	_ config.TransportFactory = loneTransport{}
	_ raftio.ITransport       = loneTransport{}

	errLone = errors.New("hiqlite: this node has no peers")
)

func (loneTransport) Create(config.NodeHostConfig, raftio.MessageHandler, raftio.ChunkHandler) raftio.ITransport {
	return loneTransport{}
}

// Validate accepts every address, as none is used.
func (loneTransport) Validate(string) bool { return true }

func (loneTransport) Name() string { return "hiqlite-lone" }
func (loneTransport) Start() error { return nil }
func (loneTransport) Close() error { return nil }

func (loneTransport) GetConnection(context.Context, string) (raftio.IConnection, error) {
	return nil, errLone
}

func (loneTransport) GetSnapshotConnection(context.Context, string) (raftio.ISnapshotConnection, error) {
	return nil, errLone
}
