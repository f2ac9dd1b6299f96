// Package settings reads the settings of a node, a server and a proxy: from the file
// hiqlite.toml, from the environment, and from a file of secrets.
//
// The table in table.go describes every setting. docs/configuration.md, the file that
// "hiqlite generate-config" writes, and the errors of this package are made from it.
//
// A setting has the value of the environment variable if that is set, and otherwise
// that of a file. Load returns all faults of all sources at once. It never ignores a
// name that it does not know, because a mistyped name would otherwise leave a default
// in force that nobody wanted.
package settings

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/ratelimit"
)

// A Role says what the settings are for. It decides which settings are required.
type Role int

const (
	Node   Role = iota // an embedded node: the DSN env:
	Server             // a node that serves clients
	Proxy              // a proxy, which has no data of its own
)

// Settings are the values of all settings, with their defaults where nothing is set.
type Settings struct {
	Node   NodeSettings
	API    APISettings
	Limits Limits
	Log    LogSettings

	// SecretsFile is the file from which secrets were read; "": none.
	SecretsFile string
	// Warnings are what an operator should know and what is not an error.
	Warnings []string

	nodeIDFrom string
}

// NodeSettings are those of the embedded node.
type NodeSettings struct {
	// Config has the secret and the certificates of Raft, too; see NodeConfig.
	Config hiqlite.Config
	// Secret is that of Raft.
	Secret hiqlite.Secret
	// TLS has the certificates of Raft.
	TLS Certificates
	// Insecure allows connections in the clear between nodes beyond loopback.
	Insecure bool
}

// APISettings are those of the port on which a server or a proxy serves clients.
type APISettings struct {
	Listen string // host:port
	Secret hiqlite.Secret
	// TLS says whether connections are encrypted. Without certificates, the keys are
	// derived from the secret.
	TLS          bool
	Certificates Certificates
	// HealthDelay is how long after its start a node is healthy whatever its state.
	HealthDelay time.Duration
	// ShutdownTimeout bounds how long the end of a server takes.
	ShutdownTimeout time.Duration
}

// Certificates name files in PEM.
type Certificates struct{ Certificate, Key, Authority string }

// Set reports whether any of the files is named.
func (c Certificates) Set() bool { return c != Certificates{} }

// Limits bound what clients can ask of a server.
type Limits struct {
	Body        int           // bytes of a request
	Rows        int           // rows of the answer to a single request
	Answer      int           // bytes of the answer to a single request
	Time        time.Duration // of a request
	Connections int
	Sessions    int           // open connections of remote drivers
	Idle        time.Duration // after which an unused session ends
	Rates       ratelimit.Limits
}

// LogSettings say what a server logs, and how.
type LogSettings struct {
	Level      string // debug, info, warn or error
	Format     string // text or json
	Statements bool
}

// Options say where the settings come from.
type Options struct {
	Role Role
	// File is the path of the file; "": that in HQL_CONFIG, or hiqlite.toml if there is
	// one in the working directory.
	File string
	// Environ is the environment, as os.Environ returns it; nil: that of the process.
	Environ []string
	// Hostname returns the name of this host; nil: os.Hostname.
	Hostname func() (string, error)
}

// Load reads the settings. Its error lists all faults.
func Load(opts Options) (*Settings, error) {
	if opts.Environ == nil {
		opts.Environ = os.Environ()
	}
	if opts.Hostname == nil {
		opts.Hostname = os.Hostname
	}
	if opts.File == "" {
		for _, pair := range opts.Environ {
			if file, ok := strings.CutPrefix(pair, configVariable+"="); ok {
				opts.File = file
			}
		}
	}
	l := &loader{settings: defaults(), given: map[string]value{}}
	l.environment(opts.Environ)
	l.files(opts.File)
	for _, setting := range table {
		v, ok := l.given[setting.Key]
		if !ok {
			continue
		}
		if err := setting.kind.read(l.settings, v.text); err != nil {
			l.fault(v.source, setting.shown(v.text), err)
			l.broken = append(l.broken, setting.Key)
		}
	}
	l.resolve(opts)
	if l.faults != nil {
		return nil, errors.Join(l.faults...)
	}
	return l.settings, nil
}

// defaults returns the settings if nothing is set.
func defaults() *Settings {
	s := &Settings{}
	for _, setting := range table {
		if setting.Default == "" {
			continue
		}
		if err := setting.kind.read(s, setting.Default); err != nil {
			panic(fmt.Sprintf("settings: the default of %s: %v", setting.Key, err))
		}
	}
	return s
}

// NodeConfig returns the configuration of the embedded node.
func (s *Settings) NodeConfig() hiqlite.Config { return s.Node.Config }

// RemoteConfig returns the configuration of a client of the nodes, for a proxy.
func (s *Settings) RemoteConfig() hiqlite.RemoteConfig {
	cfg := hiqlite.RemoteConfig{Secret: s.API.Secret, TLSCAFile: s.API.Certificates.Authority, Insecure: !s.API.TLS, Timeout: s.Node.Config.Timeout}
	for _, m := range s.Node.Config.Nodes {
		cfg.Addresses = append(cfg.Addresses, m.APIAddr)
	}
	return cfg
}

// isSet reports whether a source gives a setting, readable or not.
func (l *loader) isSet(key string) bool {
	_, ok := l.given[key]
	return ok
}

// nameOf returns how users know a setting.
func nameOf(key string) string {
	for _, s := range table {
		if s.Key == key {
			return s.Variable + " (" + key + " in hiqlite.toml)"
		}
	}
	return key
}

// joinNames joins names for an error.
func joinNames(keys ...string) string {
	names := make([]string, len(keys))
	for i, k := range keys {
		names[i] = nameOf(k)
	}
	return strings.Join(names, " and ")
}

// Variable returns the environment variable of a setting.
func Variable(key string) string {
	for _, s := range table {
		if s.Key == key {
			return s.Variable
		}
	}
	panic("settings: there is no setting " + key)
}
