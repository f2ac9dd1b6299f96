package cluster

import (
	"context"
	"errors"

	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/raftio"
)

// loneTransport is the transport of a cluster of one node. It opens no port and no
// connections.
type loneTransport struct{}

var (
	_ config.TransportFactory = loneTransport{}
	_ raftio.ITransport       = loneTransport{}

	errLone = errors.New("hiqlite: this node is the only one of its cluster")
)

func (loneTransport) Create(config.NodeHostConfig, raftio.MessageHandler, raftio.ChunkHandler) raftio.ITransport {
	return loneTransport{}
}

// Validate accepts every address, because none is used.
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
