package node

import (
	"github.com/hiqlite/hiqlite/cluster"
	"github.com/hiqlite/hiqlite/internal/identity"
	"github.com/hiqlite/hiqlite/internal/loopback"
)

// identity returns the identity by which the nodes recognise each other, or nil if
// they talk in the clear, which is logged if others can listen.
func (n *Node) identity() (*identity.Identity, error) {
	log := n.opts.Logger
	secret := n.opts.Secret
	if path := n.opts.SecretFile; path != "" {
		var wide bool
		var err error
		if secret, wide, err = identity.ReadSecret(path); err != nil {
			return nil, err
		}
		if wide {
			log.Warn("hiqlite: other users of this machine can read the secret: chmod 600", "file", path)
		}
	}
	switch {
	case n.opts.Certificates != (identity.Files{}):
		return identity.FromFiles(n.opts.Certificates, cluster.Protocol, log)
	case secret.Set():
		return identity.FromSecret(secret, identity.RaftLabel, cluster.Protocol)
	}
	for _, m := range n.opts.Members {
		if !n.alone() && (!loopback.Is(m.RaftAddr) || n.opts.ListenAddr != "" && !loopback.Is(n.opts.ListenAddr)) {
			log.Warn("hiqlite: INSECURE: the connections between nodes are not encrypted or authenticated; whoever can connect to the Raft port can read and change everything",
				"node", n.opts.ID)
			break
		}
	}
	return nil, nil
}
