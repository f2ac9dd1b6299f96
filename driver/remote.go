package driver

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/hiqlite/hiqlite"
)

// remoteScheme begins the DSN of a remote database.
const remoteScheme = "hiqlite://"

// remoteKeys are the keys that say something else of a remote database than of a node,
// or nothing of a node.
var remoteKeys = map[string]func(c *hiqlite.RemoteConfig, value string) error{
	"secret_file":       func(c *hiqlite.RemoteConfig, v string) error { c.SecretFile = v; return nil },
	"tls_ca_file":       func(c *hiqlite.RemoteConfig, v string) error { c.TLSCAFile = v; return nil },
	"insecure":          func(c *hiqlite.RemoteConfig, v string) (err error) { c.Insecure, err = boolean(v); return err },
	"timeout":           func(c *hiqlite.RemoteConfig, v string) (err error) { c.Timeout, err = duration(v); return err },
	"reconnect_timeout": func(c *hiqlite.RemoteConfig, v string) (err error) { c.ReconnectTimeout, err = duration(v); return err },
}

// ofConnections reports whether a key is one of connections, which remote databases have
// in common with nodes.
func ofConnections(name string) bool {
	return name[0] == '_' || name == "consistency" || name == "tx_timeout" || name == "tx_trace"
}

// parseRemote parses the DSN of a remote database. Its error lists all faults.
func parseRemote(name string) (*hiqlite.RemoteConfig, error) {
	addresses, query, _ := strings.Cut(strings.TrimPrefix(name, remoteScheme), "?")
	cfg := &hiqlite.RemoteConfig{}
	for address := range strings.SplitSeq(strings.TrimSuffix(addresses, "/"), ",") {
		if address = strings.TrimSpace(address); address != "" {
			cfg.Addresses = append(cfg.Addresses, address)
		}
	}
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf("hiqlite: "+format, args...)) }
	values, err := url.ParseQuery(query)
	if err != nil {
		fault("the DSN's keys cannot be read: %w", err)
	}
	own := url.Values{}
	for key, list := range values {
		if _, ok := remoteKeys[key]; ok {
			own[key] = list
			delete(values, key)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(own)) {
		err := errors.New("the value is empty")
		if len(own[key]) > 1 {
			err = errors.New("the DSN gives it twice")
		} else if own.Get(key) != "" {
			err = remoteKeys[key](cfg, own.Get(key))
		}
		if err != nil {
			fault("%s=%s: %w", key, own.Get(key), err)
		}
	}
	given, errs := collect(values)
	for _, err := range errs {
		fault("%w", err)
	}
	s := &source{}
	for _, key := range slices.Sorted(maps.Keys(given)) {
		value, err := given[key], error(nil)
		switch {
		case !ofConnections(key):
			err = errors.New("the key concerns a node, and this DSN names a remote database")
		case value != "":
			err = keys[key].read(s, value)
		case keys[key].required:
			err = errors.New("the value is empty")
		}
		if err != nil {
			fault("%s=%s: %w", key, value, err)
		}
	}
	s.conn.Pragmas = pragmas(given, values["_pragma"])
	cfg.Conn = s.conn
	if err := cfg.Validate(); err != nil {
		faults = append(faults, err)
	}
	return cfg, errors.Join(faults...)
}
