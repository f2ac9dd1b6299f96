package settings

import (
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strconv"

	"github.com/hiqlite/hiqlite"
)

// DefaultAPIPort is the port on which a server listens for clients if nothing names
// another one.
const DefaultAPIPort = "8200"

// resolve computes what follows from several settings, and checks that they fit to
// each other and to the role.
func (l *loader) resolve(opts Options) {
	s := l.settings
	if opts.Role == Proxy {
		l.resolveProxy()
	} else {
		l.resolveNode(opts)
	}
	l.resolveAPI(opts.Role)
	for _, c := range []struct {
		what  string
		files Certificates
	}{{"tls_raft", s.Node.TLS}, {"tls_api", s.API.Certificates}} {
		if (c.files.Certificate == "") != (c.files.Key == "") {
			l.add("%s are given without each other", joinNames(c.what+"_cert", c.what+"_key"))
		}
	}
	if s.Node.TLS.Certificate != "" && s.Node.TLS.Authority == "" {
		l.add("%s needs %s, by which nodes recognise each other", nameOf("tls_raft_cert"), nameOf("tls_raft_ca"))
	}
	for _, kind := range []string{"db", "cache"} {
		if l.isSet("rate_limit_"+kind+"_burst") && !l.isSet("rate_limit_"+kind+"_rps") {
			l.add("%s has no effect without %s", nameOf("rate_limit_"+kind+"_burst"), nameOf("rate_limit_"+kind+"_rps"))
		}
	}
	if s.API.Secret.Set() && s.API.Secret.Text() == s.Node.Secret.Text() {
		s.Warnings = append(s.Warnings, "secret_api and secret_raft are the same: every client can act as a node")
	}
}

// add adds a fault that concerns several settings.
func (l *loader) add(format string, args ...any) {
	l.faults = append(l.faults, fmt.Errorf("hiqlite: "+format, args...))
}

// readable reports whether all of these settings are absent or could be read. What
// depends on others is not worth an error of its own.
func (l *loader) readable(keys ...string) bool {
	return !slices.ContainsFunc(keys, func(k string) bool { return slices.Contains(l.broken, k) })
}

func (l *loader) resolveNode(opts Options) {
	cfg := &l.settings.Node.Config
	if l.settings.nodeIDFrom == "k8s" {
		host, err := opts.Hostname()
		var id uint64
		if err == nil {
			id, err = ordinal(host)
		}
		switch {
		case err != nil:
			l.add("%s: %w", nameOf("node_id_from"), err)
			l.broken = append(l.broken, "node_id")
		case cfg.NodeID != 0 && cfg.NodeID != id:
			l.add("%s says that this is node %d, and the name of the host, %s, that it is node %d: leave one of them out", nameOf("node_id"), cfg.NodeID, host, id)
		default:
			cfg.NodeID = id
		}
	}
	if !l.readable("node_id", "nodes") {
		return
	}
	if cfg.NodeID == 0 {
		cfg.NodeID = 1
	}
	if cfg.DataDir == "" && l.readable("data_dir") {
		l.add("no folder for the data: set %s, or make a file of settings with `hiqlite generate-config`", nameOf("data_dir"))
		return
	}
	own := l.member()
	if cfg.ListenAddr != "" {
		if _, _, err := net.SplitHostPort(cfg.ListenAddr); err != nil {
			if own.RaftAddr == "" {
				l.add("%s = %s has no port, and there are no nodes that name one", nameOf("listen_addr_raft"), cfg.ListenAddr)
				return
			}
			cfg.ListenAddr = withPortOf(cfg.ListenAddr, own.RaftAddr, "")
		}
	}
	n := l.settings.Node
	cfg.Insecure, cfg.Secret = n.Insecure, n.Secret
	cfg.TLSCertFile, cfg.TLSKeyFile, cfg.TLSCAFile = n.TLS.Certificate, n.TLS.Key, n.TLS.Authority
	if err := cfg.Validate(); err != nil && l.faults == nil {
		l.faults = append(l.faults, err)
	}
}

// member returns this node's line in the list of nodes, or nothing.
func (l *loader) member() hiqlite.Member {
	cfg := &l.settings.Node.Config
	i := slices.IndexFunc(cfg.Nodes, func(m hiqlite.Member) bool { return m.ID == max(1, cfg.NodeID) })
	if i < 0 {
		return hiqlite.Member{}
	}
	return cfg.Nodes[i]
}

func (l *loader) resolveProxy() {
	cfg := &l.settings.Node.Config
	if !l.readable("nodes") {
		return
	}
	if len(cfg.Nodes) == 0 {
		l.add("a proxy needs the addresses of the nodes: set %s", nameOf("nodes"))
	}
	for _, m := range cfg.Nodes {
		if m.APIAddr == "" {
			l.add("%s: node %d has no address for clients, which is the third word of its line", nameOf("nodes"), m.ID)
		}
	}
}

// resolveAPI finds out where a server or proxy listens, and whether it encrypts.
func (l *loader) resolveAPI(role Role) {
	api := &l.settings.API
	if !l.isSet("tls_api") {
		api.TLS = api.Secret.Set() || api.Certificates.Set()
	}
	if role == Node || !l.readable("listen_addr_api", "nodes", "node_id", "secret_api") {
		return
	}
	own := hiqlite.Member{}
	if role == Server {
		own = l.member()
	}
	if api.Listen == "" {
		api.Listen = own.APIAddr
		if api.Listen == "" {
			api.Listen = net.JoinHostPort("127.0.0.1", DefaultAPIPort)
		}
	}
	api.Listen = withPortOf(api.Listen, own.APIAddr, DefaultAPIPort)
	switch {
	case api.Secret.Set():
	case role == Proxy:
		l.add("a proxy needs the secret of the API: set %s", nameOf("secret_api"))
	case !isLoopback(api.Listen):
		l.add("the server listens for clients on %s, which is not loopback, so it needs a secret: set %s", api.Listen, nameOf("secret_api"))
	}
	if role == Proxy && api.TLS && api.Certificates.Certificate != "" && api.Certificates.Authority == "" {
		l.add("a proxy with %s needs %s, by which it recognises the nodes", nameOf("tls_api_cert"), nameOf("tls_api_ca"))
	}
	if api.TLS && !api.Secret.Set() && !api.Certificates.Set() {
		l.add("%s needs %s or %s", nameOf("tls_api"), nameOf("secret_api"), nameOf("tls_api_cert"))
	}
}

// withPortOf returns an address with a port: its own, or that of other, or otherwise.
func withPortOf(address, other, otherwise string) string {
	if _, _, err := net.SplitHostPort(address); err == nil {
		return address
	}
	host := address
	if len(host) > 1 && host[0] == '[' {
		host = host[1 : len(host)-1]
	}
	if _, port, err := net.SplitHostPort(other); err == nil {
		return net.JoinHostPort(host, port)
	}
	return net.JoinHostPort(host, otherwise)
}

// isLoopback reports whether only this machine can reach an address.
func isLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

var ordinalOf = regexp.MustCompile(`^[^.]*-([0-9]{1,9})(\..*)?$`)

// ordinal returns the number of the node whose host a StatefulSet has named: ordinals
// begin with 0 and numbers of nodes with 1.
func ordinal(host string) (uint64, error) {
	found := ordinalOf.FindStringSubmatch(host)
	if found == nil {
		return 0, fmt.Errorf("the name of the host, %q, does not end in - and a number, as those of a StatefulSet do", host)
	}
	n, err := strconv.ParseUint(found[1], 10, 32)
	if err != nil {
		return 0, errors.New("the number of the host is too large")
	}
	return n + 1, nil
}
