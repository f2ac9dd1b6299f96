package settings

import (
	"time"

	"github.com/hiqlite/hiqlite"
)

// A Setting describes one setting.
type Setting struct {
	Key       string // in hiqlite.toml
	Variable  string // in the environment; Variable + "_FILE" names a file with the value
	Default   string // as it is written; "": none
	Otherwise string // says what happens if it is not set and has no Default
	Doc       string // one sentence, or two
	Example   string // for the generated file, if there is no Default

	kind   kind
	group  string
	secret bool // may stand in the file of secrets
	isPath bool // Variable + "_FILE" is another name of Variable
}

// shown returns a value as errors may show it.
func (s *Setting) shown(v string) string {
	if s.secret {
		return "[redacted]"
	}
	return v
}

// The groups of settings, in the order of the table.
const (
	groupNode    = "The node"
	groupNetwork = "The network between nodes"
	groupAPI     = "The API for clients"
	groupLimits  = "Limits for clients"
	groupLog     = "Logging"
)

const hour = time.Hour

// table describes every setting.
var table = []Setting{
	{Key: "node_id", Variable: "HQL_NODE_ID", Otherwise: "1", Example: "1", group: groupNode,
		kind: number(1, 1<<32-1, "", func(s *Settings) *uint64 { return &s.Node.Config.NodeID }),
		Doc:  "The number of this node in nodes."},
	{Key: "node_id_from", Variable: "HQL_NODE_ID_FROM", Otherwise: "node_id", Example: "k8s", group: groupNode,
		kind: choice(func(s *Settings) *string { return &s.nodeIDFrom }, "k8s"),
		Doc:  "k8s takes the number of this node from the ordinal in the name of its host, as a StatefulSet of Kubernetes gives it: hiqlite-0 is node 1."},
	{Key: "nodes", Variable: "HQL_NODES", Otherwise: "this node alone", Example: "1 10.0.0.1:8100 10.0.0.1:8200\n2 10.0.0.2:8100 10.0.0.2:8200\n3 10.0.0.3:8100 10.0.0.3:8200", group: groupNode,
		kind: nodeList(func(s *Settings) *[]hiqlite.Member { return &s.Node.Config.Nodes }),
		Doc:  "All nodes of the cluster, the same list on each of them: number, address for the other nodes, and address for clients. In the environment, put one node on each line, or separate them by commas."},
	{Key: "data_dir", Variable: "HQL_DATA_DIR", Otherwise: "required, except by a proxy", Example: "data", group: groupNode,
		kind: path(func(s *Settings) *string { return &s.Node.Config.DataDir }),
		Doc:  "The folder of the node's log and database. It is created if it does not exist, and belongs to one node."},
	{Key: "read_pool_size", Variable: "HQL_READ_POOL_SIZE", Default: "256", group: groupNode,
		kind: number(1, 10_000, "", func(s *Settings) *int { return &s.Node.Config.MaxReaders }),
		Doc:  "How many queries can read at the same time. Each may use 2 MB; further ones wait."},
	{Key: "timeout", Variable: "HQL_TIMEOUT", Default: "30s", group: groupNode,
		kind: duration(time.Second, 24*hour, func(s *Settings) *time.Duration { return &s.Node.Config.Timeout }),
		Doc:  "How long an operation may take if its caller has set no deadline."},
	{Key: "max_steps", Variable: "HQL_MAX_STEPS", Default: "200000000", group: groupNode,
		kind: number(1000, uint64(1)<<62, "", func(s *Settings) *uint64 { return &s.Node.Config.MaxSteps }),
		Doc:  "How many steps of SQLite's virtual machine one write may take, or all writes of a transaction together. An UPDATE of a million rows takes 11 to 20 million."},
	{Key: "tick", Variable: "HQL_TICK", Otherwise: "50ms, or 20ms for a single node", Example: "50ms", group: groupNode,
		kind: duration(time.Millisecond, 10*time.Second, func(s *Settings) *time.Duration { return &s.Node.Config.Tick }),
		Doc:  "Raft's unit of time, in whole milliseconds, the same on all nodes. An election begins after 16 to 32 ticks without a leader."},
	{Key: "lease_ttl", Variable: "HQL_LEASE_TTL", Default: "5s", group: groupNode,
		kind: duration(time.Second, hour, func(s *Settings) *time.Duration { return &s.Node.Config.LeaseTTL }),
		Doc:  "How long the transaction of a node that cannot be reached keeps blocking other writers."},
	{Key: "timezone", Variable: "HQL_TIMEZONE", Otherwise: "the zone of the cluster, which is UTC until one is set", Example: "Europe/Berlin", group: groupNode,
		kind: text(func(s *Settings) *string { return &s.Node.Config.Timezone }),
		Doc:  "The time zone of SQL's 'localtime' and 'utc'. The first node that names one sets it for the whole cluster, for good."},
	{Key: "durability", Variable: "HQL_DURABILITY", Default: "always", group: groupNode,
		kind: choice(func(*Settings) *string { return new(string) }, "always"),
		Doc:  "When a write returns. The only level so far is always: when a majority of the nodes has it on disk."},

	{Key: "secrets_file", Variable: "HQL_SECRETS_FILE", Otherwise: "none", Example: "/etc/hiqlite/secrets.toml", group: groupNetwork, isPath: true,
		kind: path(func(s *Settings) *string { return &s.SecretsFile }),
		Doc:  "A second file in TOML, with secret_raft and secret_api and nothing else, so that the rest can be shown to everybody."},
	{Key: "secret_raft", Variable: "HQL_SECRET_RAFT", Otherwise: "required by a cluster that leaves loopback, unless it has certificates", group: groupNetwork, secret: true,
		kind: secret(func(s *Settings) *hiqlite.Secret { return &s.Node.Secret }),
		Doc:  "The secret by which nodes recognise each other, and from which the keys of their connections are derived; the same on all nodes."},
	{Key: "listen_addr_raft", Variable: "HQL_LISTEN_ADDR_RAFT", Otherwise: "the node's address in nodes", Example: "0.0.0.0", group: groupNetwork,
		kind: address(func(s *Settings) *string { return &s.Node.Config.ListenAddr }),
		Doc:  "Where this node listens for the other nodes. A host without a port has the port of the node's address in nodes; 0.0.0.0 is all interfaces."},
	{Key: "tls_raft_cert", Variable: "HQL_TLS_RAFT_CERT", Otherwise: "keys derived from secret_raft", Example: "/etc/hiqlite/raft.crt", group: groupNetwork, isPath: true,
		kind: path(func(s *Settings) *string { return &s.Node.TLS.Certificate }),
		Doc:  "This node's certificate for connections between nodes, in PEM. It is read again when the file changes."},
	{Key: "tls_raft_key", Variable: "HQL_TLS_RAFT_KEY", Otherwise: "-", Example: "/etc/hiqlite/raft.key", group: groupNetwork, isPath: true,
		kind: path(func(s *Settings) *string { return &s.Node.TLS.Key }),
		Doc:  "The key of tls_raft_cert, in PEM."},
	{Key: "tls_raft_ca", Variable: "HQL_TLS_RAFT_CA", Otherwise: "-", Example: "/etc/hiqlite/raft-ca.crt", group: groupNetwork, isPath: true,
		kind: path(func(s *Settings) *string { return &s.Node.TLS.Authority }),
		Doc:  "The certificates of the authority that signs for the nodes of this cluster, and for nobody else, in PEM."},
	{Key: "insecure", Variable: "HQL_INSECURE", Default: "false", group: groupNetwork,
		kind: boolean(func(s *Settings) *bool { return &s.Node.Insecure }),
		Doc:  "Allows nodes to talk over a network without encryption. Everybody who reaches them can then read and change everything."},

	{Key: "listen_addr_api", Variable: "HQL_LISTEN_ADDR_API", Otherwise: "the node's API address in nodes, or 127.0.0.1:8200", Example: "0.0.0.0:8200", group: groupAPI,
		kind: address(func(s *Settings) *string { return &s.API.Listen }),
		Doc:  "Where a server or proxy listens for clients. A host without a port has the port of the node's API address in nodes, or 8200."},
	{Key: "secret_api", Variable: "HQL_SECRET_API", Otherwise: "required by a server that listens beyond loopback, and by a proxy", group: groupAPI, secret: true,
		kind: secret(func(s *Settings) *hiqlite.Secret { return &s.API.Secret }),
		Doc:  "The secret that clients present, the same on all nodes. It should be another one than secret_raft, because clients must not be able to act as nodes."},
	{Key: "tls_api", Variable: "HQL_TLS_API", Otherwise: "true if there is secret_api or tls_api_cert", Example: "true", group: groupAPI,
		kind: boolean(func(s *Settings) *bool { return &s.API.TLS }),
		Doc:  "Whether connections of clients are encrypted: with tls_api_cert, or with a key derived from secret_api. Switch it off only behind something that encrypts."},
	{Key: "tls_api_cert", Variable: "HQL_TLS_API_CERT", Otherwise: "a key derived from secret_api", Example: "/etc/hiqlite/api.crt", group: groupAPI, isPath: true,
		kind: path(func(s *Settings) *string { return &s.API.Certificates.Certificate }),
		Doc:  "The server's certificate for clients, in PEM. It is read again when the file changes."},
	{Key: "tls_api_key", Variable: "HQL_TLS_API_KEY", Otherwise: "-", Example: "/etc/hiqlite/api.key", group: groupAPI, isPath: true,
		kind: path(func(s *Settings) *string { return &s.API.Certificates.Key }),
		Doc:  "The key of tls_api_cert, in PEM."},
	{Key: "tls_api_ca", Variable: "HQL_TLS_API_CA", Otherwise: "required by a proxy if there is tls_api_cert", Example: "/etc/hiqlite/api-ca.crt", group: groupAPI, isPath: true,
		kind: path(func(s *Settings) *string { return &s.API.Certificates.Authority }),
		Doc:  "The certificates of the authority that signed tls_api_cert, in PEM, by which a proxy recognises the nodes."},
	{Key: "health_check_delay_secs", Variable: "HQL_HEALTH_CHECK_DELAY_SECS", Default: "30", group: groupAPI,
		kind: seconds(0, 3600, func(s *Settings) *time.Duration { return &s.API.HealthDelay }),
		Doc:  "For how long after its start /health answers that a node is healthy while it is not yet, so that it is not restarted while it starts."},
	{Key: "shutdown_timeout", Variable: "HQL_SHUTDOWN_TIMEOUT", Default: "5s", group: groupAPI,
		kind: duration(100*time.Millisecond, hour, func(s *Settings) *time.Duration { return &s.API.ShutdownTimeout }),
		Doc:  "How long the end of a server may take after SIGTERM. Requests in flight get the first half of it, and handing leadership over and closing the node the rest."},

	{Key: "api_max_body", Variable: "HQL_API_MAX_BODY", Default: "16MiB", group: groupLimits,
		kind: size("1KiB", "1GiB", func(s *Settings) *int { return &s.Limits.Body }),
		Doc:  "The largest request."},
	{Key: "api_max_rows", Variable: "HQL_API_MAX_ROWS", Default: "10000", group: groupLimits,
		kind: number(1, 100_000_000, "", func(s *Settings) *int { return &s.Limits.Rows }),
		Doc:  "How many rows the answer to a single request may have. Remote drivers get rows as a stream, which this does not limit."},
	{Key: "api_max_answer", Variable: "HQL_API_MAX_ANSWER", Default: "8MiB", group: groupLimits,
		kind: size("1KiB", "1GiB", func(s *Settings) *int { return &s.Limits.Answer }),
		Doc:  "How large the answer to a single request may be."},
	{Key: "api_max_time", Variable: "HQL_API_MAX_TIME", Default: "1m", group: groupLimits,
		kind: duration(time.Second, 24*hour, func(s *Settings) *time.Duration { return &s.Limits.Time }),
		Doc:  "How long a single request may take."},
	{Key: "api_max_connections", Variable: "HQL_API_MAX_CONNECTIONS", Default: "20000", group: groupLimits,
		kind: number(1, 1_000_000, "", func(s *Settings) *int { return &s.Limits.Connections }),
		Doc:  "How many network connections clients may have open."},
	{Key: "api_max_sessions", Variable: "HQL_API_MAX_SESSIONS", Default: "20000", group: groupLimits,
		kind: number(1, 1_000_000, "", func(s *Settings) *int { return &s.Limits.Sessions }),
		Doc:  "How many connections of remote drivers, and how many streams such as watches, may be open. Many of them share a network connection."},
	{Key: "api_idle_timeout", Variable: "HQL_API_IDLE_TIMEOUT", Default: "10m", group: groupLimits,
		kind: duration(time.Second, 24*hour, func(s *Settings) *time.Duration { return &s.Limits.Idle }),
		Doc:  "After what time without a request the connection of a remote driver ends, or the query whose rows it has not read to the end. Drivers open another connection when they need it."},
	{Key: "rate_limit_db_rps", Variable: "HQL_RL_DB_RPS", Otherwise: "no limit", Example: "1000", group: groupLimits,
		kind: number(1, 100_000_000, "a second", func(s *Settings) *int { return &s.Limits.Rates.SQL.PerSecond }),
		Doc:  "How many SQL statements each client may send. A client is the address of a host, so limit the clients of a proxy at the proxy. A driver waits for its turn; other requests are refused."},
	{Key: "rate_limit_db_burst", Variable: "HQL_RL_DB_BURST", Otherwise: "rate_limit_db_rps", Example: "2000", group: groupLimits,
		kind: number(1, 100_000_000, "", func(s *Settings) *int { return &s.Limits.Rates.SQL.Burst }),
		Doc:  "How many SQL statements a client may send at once after a pause."},
	{Key: "rate_limit_cache_rps", Variable: "HQL_RL_CACHE_RPS", Otherwise: "no limit", Example: "1000", group: groupLimits,
		kind: number(1, 100_000_000, "a second", func(s *Settings) *int { return &s.Limits.Rates.Cache.PerSecond }),
		Doc:  "How many requests to caches, locks and channels each client may send."},
	{Key: "rate_limit_cache_burst", Variable: "HQL_RL_CACHE_BURST", Otherwise: "rate_limit_cache_rps", Example: "2000", group: groupLimits,
		kind: number(1, 100_000_000, "", func(s *Settings) *int { return &s.Limits.Rates.Cache.Burst }),
		Doc:  "How many requests to caches, locks and channels a client may send at once after a pause."},

	{Key: "log_level", Variable: "HQL_LOG_LEVEL", Default: "info", group: groupLog,
		kind: choice(func(s *Settings) *string { return &s.Log.Level }, "debug", "info", "warn", "error"),
		Doc:  "The least important messages that a server logs."},
	{Key: "log_format", Variable: "HQL_LOG_FORMAT", Default: "text", group: groupLog,
		kind: choice(func(s *Settings) *string { return &s.Log.Format }, "text", "json"),
		Doc:  "The form of a server's messages, each of which is one line."},
	{Key: "log_statements", Variable: "HQL_LOG_STATEMENTS", Default: "false", group: groupLog,
		kind: boolean(func(s *Settings) *bool { return &s.Log.Statements }),
		Doc:  "Logs the text of each SQL statement that clients send, without its arguments."},
}

// elsewhere says what to do about settings of the Rust hiqlite, whose other settings
// have the same names here.
var elsewhere = map[string]string{
	"HQL_FILENAME_DB":                   "leave it out: a node names its files itself, in data_dir",
	"HQL_LOGS_UNTIL_SNAPSHOT":           "leave it out: the log is compacted by its size",
	"HQL_LOG_SYNC":                      "write durability = \"always\", or leave it out",
	"HQL_SYNC_IMMEDIATE":                "write durability = \"always\", or leave it out",
	"HQL_WAL_SIZE":                      "leave it out: the log's files need no setting",
	"HQL_WAL_IGNORE_LOCK":               "leave it out: the lock of a data folder ends with its process",
	"HQL_CHECK_WAL_INTEGRITY":           "leave it out: a node always checks its files",
	"HQL_CACHE_STORAGE_DISK":            "leave it out: the log of caches is always on disk",
	"HQL_TLS_RAFT_DANGER_TLS_NO_VERIFY": "leave it out: nodes always verify each other; for tests without encryption write insecure = true",
	"HQL_TLS_API_DANGER_TLS_NO_VERIFY":  "leave it out: without tls_api_ca, clients recognise a server by the API secret",
	"HQL_TLS_AUTO_CERTS":                "leave it out: without certificates, keys are derived from the secrets",
	"HQL_LEARNER_ONLY":                  "nodes without a vote come with a later version",
	"HQL_SPLIT_BRAIN_INTERVAL":          "leave it out: there is nothing to check",
	"HQL_DANGER_RAFT_STATE_RESET":       "a node with a damaged log refuses to start: restore its folder",
	"HQL_ENC_KEYS_FROM":                 "backups come with a later version",
	"HQL_PASSWORD_DASHBOARD":            "a dashboard comes with a later version",
	"HQL_INSECURE_COOKIE":               "a dashboard comes with a later version",
}

// elsewherePrefixes are those of further such settings.
var elsewherePrefixes = map[string]string{
	"HQL_BACKUP_": "backups come with a later version",
	"HQL_S3_":     "backups come with a later version",
}

// configVariable names the file of the settings.
const configVariable = "HQL_CONFIG"
