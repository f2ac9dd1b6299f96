package driver

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/settings"
)

// A source is a parsed DSN.
type source struct {
	node hiqlite.Config // Conn is not set
	conn hiqlite.ConnConfig
}

// parse parses a DSN. Its error lists all faults of the DSN.
func parse(name string) (*source, error) {
	path, query, _ := strings.Cut(name, "?")
	s := &source{node: hiqlite.Config{NodeID: 1, Timeout: hiqlite.DefaultTimeout, MaxSteps: hiqlite.DefaultMaxSteps}}
	addRegistered(&s.node)
	var faults []error
	fault := func(err error) { faults = append(faults, fmt.Errorf("hiqlite: %w", err)) }

	fromEnvironment := path == "env:"
	if fromEnvironment {
		if err := s.readEnvironment(); err != nil {
			return nil, err
		}
	} else if dir, err := folder(path); err != nil {
		return nil, fmt.Errorf("hiqlite: %w", err) // do not judge the keys of another driver's DSN
	} else {
		s.node.DataDir = dir
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		fault(fmt.Errorf("the DSN's keys cannot be read: %w", err))
	}
	given, errs := collect(values)
	for _, err := range errs {
		fault(err)
	}
	nodesUnknown := false // node_id or nodes could not be read, so the rest of the node cannot be validated
	for _, name := range slices.Sorted(maps.Keys(given)) {
		value, key := given[name], keys[name]
		if value == "" && !key.required {
			continue
		}
		err := errors.New("the value is empty")
		switch setting, ofNode := nodeKeys[name]; {
		case fromEnvironment && ofNode:
			err = fmt.Errorf("the DSN env: takes no keys of the node: write %s to hiqlite.toml, or set %s", setting, settings.Variable(setting))
		case value != "":
			err = key.read(s, value)
		}
		if err != nil {
			fault(fmt.Errorf("%s=%s: %w", name, value, err))
			nodesUnknown = nodesUnknown || name == "node_id" || name == "nodes"
		}
	}
	s.conn.Pragmas = pragmas(given, values["_pragma"])
	if !nodesUnknown {
		s.node.Conn = s.conn
		if err := s.node.Validate(); err != nil {
			faults = append(faults, err)
		}
		s.node.Conn = hiqlite.ConnConfig{}
	}
	if faults != nil {
		return nil, errors.Join(faults...)
	}
	return s, nil
}

// folder returns the path of the data folder from the part of the DSN before the '?'.
func folder(path string) (string, error) {
	switch scheme, _, found := strings.Cut(path, "://"); {
	case strings.HasPrefix(path, "env:"):
		return "", errors.New("nothing but keys can follow env:, as in \"env:?consistency=linearizable\"; for a folder with this name, write ./ before it")
	case found && scheme != "file":
		return "", fmt.Errorf("%s:// is not a DSN of hiqlite: name a data folder, as in \"data?node_id=1\"", scheme)
	}
	if uri, ok := strings.CutPrefix(path, "file:"); ok {
		uri, _, fragment := strings.Cut(uri, "#")
		if fragment {
			return "", errors.New("the DSN's path has a fragment: write # as %23")
		}
		if authority, ok := strings.CutPrefix(uri, "//"); ok {
			host, rest, _ := strings.Cut(authority, "/")
			if host != "" && host != "localhost" {
				return "", fmt.Errorf("the DSN's path is on the host %q: a data folder is on this machine, file:/path or file:///path", host)
			}
			uri = "/" + rest
		}
		var err error
		if path, err = url.PathUnescape(uri); err != nil {
			return "", fmt.Errorf("the DSN's path cannot be read: %w", err)
		}
	}
	switch {
	case path == "":
		return "", errors.New("the DSN names no data folder: write it before the ?, as in \"data?node_id=1\"; for temporary data use a new temporary folder")
	case path == ":memory:":
		return "", errors.New("there are no databases in memory: a node keeps its log and rows in a data folder; for temporary data use a new temporary folder (in tests t.TempDir())")
	case strings.ContainsRune(path, 0):
		return "", errors.New("the DSN's path holds a NUL character")
	}
	return path, nil
}

// collect returns one value for each key, by the name that is not an alias.
func collect(values url.Values) (given map[string]string, faults []error) {
	given = map[string]string{}
	usedName := map[string]string{} // the name under which the key was given
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if name == "_pragma" {
			continue
		}
		key := name
		if of, ok := aliases[name]; ok {
			key = of
		}
		if _, ok := keys[key]; !ok {
			faults = append(faults, unknownKey(name, values.Get(name)))
			continue
		}
		for _, value := range values[name] {
			before, ok := given[key]
			switch {
			case !ok:
				given[key], usedName[key] = value, name
			case before != value && usedName[key] == name:
				faults = append(faults, fmt.Errorf("the DSN gives %s twice, as %q and %q", name, before, value))
			case before != value:
				faults = append(faults, fmt.Errorf("the DSN gives %s=%s and %s=%s, which are the same key", usedName[key], before, name, value))
			}
		}
	}
	return given, faults
}

// pragmas returns the PRAGMAs of a connection in modernc.org/sqlite's order: first
// those of _pragma, with busy_timeout before the others and these by the alphabet,
// and then those of the keys.
func pragmas(given map[string]string, listed []string) []string {
	var out []string
	if v, err := strconv.ParseInt(given["_busy_timeout"], 10, 64); err == nil && v <= 0 {
		out = append(out, "busy_timeout=0")
	}
	if v := given["_auto_vacuum"]; v != "" {
		out = append(out, "auto_vacuum="+v)
	}
	rank := func(s string) string {
		s = strings.ToLower(strings.TrimSpace(s))
		if strings.HasPrefix(s, "busy_timeout") {
			return ""
		}
		return s
	}
	listed = slices.Clone(listed)
	slices.SortStableFunc(listed, func(a, b string) int { return strings.Compare(rank(a), rank(b)) })
	out = append(out, listed...)
	for _, name := range []string{"_foreign_keys", "_journal_mode", "_synchronous", "_query_only"} {
		if v := given[name]; v != "" {
			out = append(out, name[1:]+"="+v)
		}
	}
	return out
}

// aliases maps other names of keys to the keys.
var aliases = map[string]string{
	"_timeout": "_busy_timeout", "_fk": "_foreign_keys", "_journal": "_journal_mode", "_sync": "_synchronous", "_vacuum": "_auto_vacuum",
}

// nodeKeys maps the keys of the node to the settings that the DSN env: has for them.
var nodeKeys = map[string]string{
	"node_id": "node_id", "nodes": "nodes", "listen": "listen_addr_raft", "timeout": "timeout", "timezone": "timezone",
	"lease_ttl": "lease_ttl", "tick": "tick", "max_steps": "max_steps", "durability": "durability", "secret_file": "secret_raft",
}

// readEnvironment takes the configuration of the node from the environment and from
// hiqlite.toml.
func (s *source) readEnvironment() error {
	set, err := settings.Load(settings.Options{Role: settings.Node})
	if err != nil {
		return err
	}
	s.node = set.NodeConfig()
	addRegistered(&s.node)
	for _, warning := range set.Warnings {
		slog.Warn("hiqlite: " + warning)
	}
	return nil
}

// A key says how the value of a key of the DSN is read.
type key struct {
	required bool // an empty value is an error, not the default
	read     func(s *source, value string) error
}

var keys = map[string]key{
	"node_id": {true, func(s *source, v string) (err error) {
		if s.node.NodeID, err = strconv.ParseUint(v, 10, 32); err != nil || s.node.NodeID == 0 {
			return errors.New("not a number from 1 to 2^32-1")
		}
		return nil
	}},
	"nodes":         {true, func(s *source, v string) (err error) { s.node.Nodes, err = parseNodes(v); return err }},
	"listen":        {true, func(s *source, v string) error { s.node.ListenAddr = v; return nil }},
	"timeout":       {true, func(s *source, v string) (err error) { s.node.Timeout, err = duration(v); return err }},
	"timezone":      {true, func(s *source, v string) error { s.node.Timezone = v; return nil }},
	"lease_ttl":     {true, func(s *source, v string) (err error) { s.node.LeaseTTL, err = duration(v); return err }},
	"tx_timeout":    {true, func(s *source, v string) (err error) { s.conn.TxTimeout, err = duration(v); return err }},
	"tx_trace":      {true, func(s *source, v string) (err error) { s.conn.TxTrace, err = boolean(v); return err }},
	"tick":          {true, func(s *source, v string) (err error) { s.node.Tick, err = duration(v); return err }},
	"max_steps":     {true, maxSteps},
	"durability":    {true, durability},
	"secret_file":   {true, func(s *source, v string) error { s.node.SecretFile = v; return nil }},
	"tls_cert_file": {true, func(s *source, v string) error { s.node.TLSCertFile = v; return nil }},
	"tls_key_file":  {true, func(s *source, v string) error { s.node.TLSKeyFile = v; return nil }},
	"tls_ca_file":   {true, func(s *source, v string) error { s.node.TLSCAFile = v; return nil }},
	"insecure":      {true, func(s *source, v string) (err error) { s.node.Insecure, err = boolean(v); return err }},
	"consistency": {true, func(s *source, v string) error {
		switch v {
		case hiqlite.Local.String():
		case hiqlite.Linearizable.String():
			s.conn.Consistency = hiqlite.Linearizable
		default:
			return errors.New("use local or linearizable")
		}
		return nil
	}},

	"_busy_timeout": {false, func(s *source, v string) error {
		n, err := strconv.ParseInt(v, 10, 32)
		if err != nil {
			return errors.New("not a number of milliseconds")
		}
		s.conn.BusyTimeout = max(0, time.Duration(n)*time.Millisecond)
		return nil
	}},
	"_foreign_keys": {false, oneOf(switches...)},
	"_query_only":   {false, oneOf(switches...)},
	"_journal_mode": {false, oneOf("DELETE", "TRUNCATE", "PERSIST", "MEMORY", "WAL", "OFF")},
	"_synchronous":  {false, oneOf("0", "OFF", "1", "NORMAL", "2", "FULL", "3", "EXTRA")},
	"_auto_vacuum":  {false, oneOf("0", "NONE", "1", "FULL", "2", "INCREMENTAL")},
	"_txlock": {false, func(s *source, v string) error {
		s.conn.Deferred = strings.EqualFold(v, "deferred")
		return oneOf("deferred", "immediate", "exclusive")(s, v)
	}},
	"_pragma": {}, // see pragmas

	"_time_format":         {false, func(s *source, v string) error { s.conn.TimeFormat = v; return nil }},
	"_time_integer_format": {false, func(s *source, v string) error { s.conn.TimeIntegerFormat = v; return nil }},
	"_timezone": {false, func(s *source, v string) (err error) {
		s.conn.Location, err = time.LoadLocation(v)
		return err
	}},
	"_inttotime":  {false, func(s *source, v string) (err error) { s.conn.IntToTime, err = boolean(v); return err }},
	"_texttotime": {false, func(s *source, v string) (err error) { s.conn.TextToTime, err = boolean(v); return err }},
	"_error_rc":   {false, func(_ *source, v string) error { _, err := boolean(v); return err }},
	"_defensive":  {false, func(_ *source, v string) error { _, err := boolean(v); return err }},
	"_dqs": {false, func(_ *source, v string) error {
		on, err := boolean(v)
		if err == nil && !on {
			err = errors.New("replicas read double-quoted texts as SQLite does by default; with another setting a statement of this connection would mean something else on them")
		}
		return err
	}},

	"mode":      {false, only("a node creates and writes its files; for connections that only read write _query_only=1", "rwc")},
	"cache":     {false, only("the connections of a process share the node anyway", "private")},
	"immutable": {false, only("a node's files change", "0", "no", "false", "off")},
	"nolock":    {false, only("a node's files are locked against other processes", "0", "no", "false", "off")},
	"psow":      {false, oneOf(switches...)},
	"vfs":       {false, refuse("a node manages its files itself, on the operating system's file system")},
	"modeof":    {false, refuse("a node manages its files itself; set the permissions of the data folder")},
}

var switches = []string{"0", "1", "false", "true", "no", "yes", "off", "on"}

func maxSteps(s *source, v string) (err error) {
	if s.node.MaxSteps, err = strconv.ParseUint(v, 10, 63); err != nil || s.node.MaxSteps == 0 {
		return errors.New("not a number of steps")
	}
	return nil
}

func durability(_ *source, v string) error {
	if v == "always" {
		return nil
	}
	return errors.New("relaxed levels come with a later version; write always, or leave it out")
}

func duration(v string) (time.Duration, error) {
	d, err := time.ParseDuration(v)
	if err != nil || d <= 0 {
		return 0, errors.New("not a duration such as 10s or 50ms")
	}
	return d, nil
}

func boolean(v string) (bool, error) {
	on, err := strconv.ParseBool(v)
	if err != nil {
		return false, errors.New("use 1, t, true, 0, f or false")
	}
	return on, nil
}

func oneOf(allowed ...string) func(*source, string) error {
	return func(_ *source, v string) error {
		if slices.ContainsFunc(allowed, func(a string) bool { return strings.EqualFold(a, v) }) {
			return nil
		}
		return fmt.Errorf("use one of %s", strings.Join(allowed, " "))
	}
}

func only(reason string, allowed ...string) func(*source, string) error {
	return func(_ *source, v string) error {
		if slices.Contains(allowed, strings.ToLower(v)) {
			return nil
		}
		return fmt.Errorf("not supported: %s", reason)
	}
}

func refuse(reason string) func(*source, string) error { return only(reason) }

// parseNodes parses a list of id=host:raftport/apiport.
func parseNodes(list string) ([]hiqlite.Member, error) {
	var members []hiqlite.Member
	for item := range strings.SplitSeq(list, ",") {
		item = strings.TrimSpace(item)
		id, addresses, ok := strings.Cut(item, "=")
		n, err := strconv.ParseUint(id, 10, 32)
		if !ok || err != nil {
			return nil, fmt.Errorf("%q is not id=host:raftport/apiport", item)
		}
		raft, api, _ := strings.Cut(addresses, "/")
		host, _, err := net.SplitHostPort(raft)
		if err != nil || host == "" {
			return nil, fmt.Errorf("%q is not id=host:raftport/apiport, with an IPv6 host in brackets", item)
		}
		if _, err := strconv.Atoi(api); err == nil {
			api = net.JoinHostPort(host, api)
		}
		members = append(members, hiqlite.Member{ID: n, RaftAddr: raft, APIAddr: api})
	}
	return members, nil
}

func formatNodes(members []hiqlite.Member) string {
	var out []string
	for _, m := range members {
		item := fmt.Sprintf("%d=%s", m.ID, m.RaftAddr)
		if m.APIAddr != "" {
			item += "/" + m.APIAddr
		}
		out = append(out, item)
	}
	return strings.Join(out, ",")
}

// keyNames returns the names of all keys and their aliases.
func keyNames() []string {
	return slices.Concat(slices.Sorted(maps.Keys(keys)), slices.Sorted(maps.Keys(aliases)))
}
