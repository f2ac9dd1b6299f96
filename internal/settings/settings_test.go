package settings

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite"
)

const (
	raftSecret = "raft secret of the test"
	apiSecret  = "api secret of the test"
)

// write writes a file into a temporary folder.
func write(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func load(t *testing.T, role Role, file string, environ ...string) (*Settings, error) {
	t.Helper()
	if file == "" {
		file = write(t, "empty.toml", "")
	}
	return Load(Options{Role: role, File: file, Environ: append(environ, "PATH=/bin"), Hostname: func() (string, error) { return "db-2.db.ns.svc", nil }})
}

func mustLoad(t *testing.T, role Role, file string, environ ...string) *Settings {
	t.Helper()
	s, err := load(t, role, file, environ...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestTheEnvironmentWinsOverTheFile(t *testing.T) {
	file := write(t, "hiqlite.toml", `
data_dir = "from-file"
timeout = "7s"
nodes = ["1 10.0.0.1:8100 10.0.0.1:8200", "2 10.0.0.2:8100 10.0.0.2:8200"]
insecure = true
secret_api = "`+apiSecret+`"
read_pool_size = 3
health_check_delay_secs = 5
api_max_body = "2MiB"
rate_limit_db_rps = 10
`)
	s := mustLoad(t, Server, file, "HQL_NODE_ID=2", "HQL_DATA_DIR=from-environment", "HQL_READ_POOL_SIZE=", "HQL_RL_DB_BURST=20",
		"HQL_LISTEN_ADDR_RAFT=0.0.0.0", "HQL_LISTEN_ADDR_API=::")
	cfg := s.NodeConfig()
	if cfg.DataDir != "from-environment" || cfg.Timeout != 7*time.Second || cfg.NodeID != 2 || cfg.MaxReaders != 3 || cfg.MaxSteps != hiqlite.DefaultMaxSteps {
		t.Errorf("the node's configuration is %+v", cfg)
	}
	if len(cfg.Nodes) != 2 || cfg.Nodes[1] != (hiqlite.Member{ID: 2, RaftAddr: "10.0.0.2:8100", APIAddr: "10.0.0.2:8200"}) {
		t.Errorf("the nodes are %v", cfg.Nodes)
	}
	if cfg.ListenAddr != "0.0.0.0:8100" || s.API.Listen != "[::]:8200" {
		t.Errorf("listens on %s and %s, want all interfaces with the ports of nodes", cfg.ListenAddr, s.API.Listen)
	}
	if s.API.HealthDelay != 5*time.Second || s.Limits.Body != 2<<20 || s.Limits.Rates.SQL.PerSecond != 10 || s.Limits.Rates.SQL.Burst != 20 || !s.API.TLS {
		t.Errorf("the server's settings are %+v %+v", s.API, s.Limits)
	}
}

// The defaults of the table are those of the library.
func TestDefaults(t *testing.T) {
	s := mustLoad(t, Server, "", "HQL_DATA_DIR=d")
	cfg := s.NodeConfig()
	if cfg.MaxReaders != hiqlite.DefaultMaxReaders || cfg.Timeout != hiqlite.DefaultTimeout || cfg.MaxSteps != hiqlite.DefaultMaxSteps || cfg.LeaseTTL != hiqlite.DefaultLeaseTTL || cfg.NodeID != 1 {
		t.Errorf("the node's configuration is %+v", cfg)
	}
	if s.API.Listen != "127.0.0.1:8200" || s.API.TLS || s.Log.Level != "info" {
		t.Errorf("the server's settings are %+v %+v", s.API, s.Log)
	}
}

func TestValuesInFiles(t *testing.T) {
	secret := write(t, "secret", "\n"+raftSecret+"\n")
	nodes := write(t, "nodes", "1 10.0.0.1:8100 10.0.0.1:8200,\r\n\n2 10.0.0.2:8100\n")
	s := mustLoad(t, Node, "", "HQL_DATA_DIR=d", "HQL_SECRET_RAFT_FILE="+secret, "HQL_NODES_FILE="+nodes, "HQL_INSECURE=true",
		"HQL_TLS_RAFT_CERT_FILE=c.pem", "HQL_TLS_RAFT_KEY=k.pem", "HQL_TLS_RAFT_CA=a.pem")
	if s.Node.Secret.Text() != raftSecret {
		t.Error("the secret is not that of the file")
	}
	if len(s.NodeConfig().Nodes) != 2 {
		t.Errorf("the nodes are %v", s.NodeConfig().Nodes)
	}
	if s.Node.TLS != (Certificates{"c.pem", "k.pem", "a.pem"}) {
		t.Errorf("the certificates are %v: ..._CERT and ..._CERT_FILE both name a file", s.Node.TLS)
	}
}

func TestSecretsFile(t *testing.T) {
	secrets := write(t, "secrets.toml", fmt.Sprintf("secret_raft = %q\nsecret_api = %q\n", raftSecret, apiSecret))
	s := mustLoad(t, Node, write(t, "hiqlite.toml", fmt.Sprintf("data_dir=\"d\"\nsecrets_file = %q", secrets)))
	if s.Node.Secret.Text() != raftSecret || s.API.Secret.Text() != apiSecret || s.Warnings != nil {
		t.Errorf("the secrets are not those of the file; warnings %v", s.Warnings)
	}
	if err := os.Chmod(secrets, 0o644); err != nil {
		t.Fatal(err)
	}
	s = mustLoad(t, Node, "", "HQL_DATA_DIR=d", "HQL_SECRETS_FILE="+secrets)
	if len(s.Warnings) != 1 || !strings.Contains(s.Warnings[0], "chmod 600 "+secrets) {
		t.Errorf("warnings about a file that everybody can read: %v", s.Warnings)
	}
}

// The file of the Rust hiqlite has its settings in a table.
func TestTheTableHiqlite(t *testing.T) {
	s := mustLoad(t, Node, write(t, "hiqlite.toml", "[hiqlite]\ndata_dir = \"d\"\nnode_id_from = \"k8s\"\nnodes=\"3 h:1 h:2\""), "HQL_INSECURE=true")
	if s.NodeConfig().NodeID != 3 {
		t.Errorf("the host db-2 is node %d, want 3", s.NodeConfig().NodeID)
	}
}

func TestProxy(t *testing.T) {
	s := mustLoad(t, Proxy, "", "HQL_NODES=1 a:1 a:2\n2 b:1 b:2", "HQL_SECRET_API="+apiSecret, "HQL_LISTEN_ADDR_API=0.0.0.0")
	if s.API.Listen != "0.0.0.0:8200" || len(s.NodeConfig().Nodes) != 2 {
		t.Errorf("listens on %s for %v", s.API.Listen, s.NodeConfig().Nodes)
	}
}

// Each source with its fault, and words that the error has to have.
func TestFaults(t *testing.T) {
	folder := t.TempDir()
	unreadable := write(t, "unreadable", raftSecret)
	if err := os.Chmod(unreadable, 0); err != nil {
		t.Fatal(err)
	}
	secrets := write(t, "secrets.toml", fmt.Sprintf("secret_raft = %q", raftSecret))
	notOnlySecrets := write(t, "other.toml", "tick = \"50ms\"")
	const node = "data_dir = \"d\"\n"
	for name, c := range map[string]struct {
		role    Role
		file    string
		environ []string
		want    []string
	}{
		"mistyped key":           {Node, node + "\nnodeid = 1", nil, []string{"hiqlite.toml:3", `unknown key "nodeid": did you mean node_id?`}},
		"mistyped variable":      {Node, node, []string{"HQL_DATADIR=x"}, []string{"HQL_DATADIR: unknown variable: did you mean HQL_DATA_DIR?"}},
		"mistyped file variable": {Node, node, []string{"HQL_SECRET_RAF_FILE=x"}, []string{"did you mean HQL_SECRET_RAFT_FILE?"}},
		"variable as a key":      {Node, node + "HQL_NODE_ID = 1", nil, []string{"write node_id"}},
		"key of the Rust one":    {Node, node + "wal_size = 5", []string{"HQL_S3_URL=x"}, []string{"wal_size", "leave it out", "HQL_S3_URL", "backups come with a later version"}},
		"table":                  {Node, node + "[server]\nport = 1", nil, []string{`unknown key "server"`}},
		"not TOML":               {Node, node + "tick = 50ms", nil, []string{"hiqlite.toml:2:", "this is not TOML"}},
		"number as text":         {Node, node + `node_id = "1"`, nil, []string{"hiqlite.toml:2", "node_id: write a number without quotation marks"}},
		"number for a text":      {Node, "data_dir = 5", nil, []string{"data_dir: write a text in quotation marks"}},
		"boolean as text":        {Node, node + `insecure = "yes"`, nil, []string{"insecure: write true or false without"}},
		"list of numbers":        {Node, node + "nodes = [1, 2]", nil, []string{"the list has 1, which is not a text"}},
		"no unit":                {Node, node + "tick = 50", nil, []string{"tick = 50: the unit is missing: write ms"}},
		"no unit in variable":    {Node, node, []string{"HQL_TICK=50"}, []string{"HQL_TICK = 50: the unit is missing"}},
		"wrong unit":             {Node, node, []string{"HQL_TIMEOUT=5 seconds", "HQL_API_MAX_BODY=5MB"}, []string{"not a duration such as", "not a size such as 512KiB"}},
		"range":                  {Node, node, []string{"HQL_LEASE_TTL=10ms", "HQL_READ_POOL_SIZE=0", "HQL_API_MAX_BODY=1B", "HQL_NODE_ID=4294967296"}, []string{"HQL_LEASE_TTL = 10ms: not in the range: write 1s to 1h", "write 1 to 10000", "write 1KiB to 1GiB", "write 1 to 4294967295"}},
		"choice":                 {Node, node, []string{"HQL_LOG_LEVEL=verbose", "HQL_NODE_ID_FROM=aws", "HQL_DURABILITY=never"}, []string{"write debug or info or warn or error", "write k8s", "write always"}},
		"variable and file":      {Node, node, []string{"HQL_SECRET_RAFT=" + raftSecret, "HQL_SECRET_RAFT_FILE=" + secrets}, []string{"HQL_SECRET_RAFT and HQL_SECRET_RAFT_FILE: both are set"}},
		"no such file":           {Node, node, []string{"HQL_SECRET_RAFT_FILE=" + folder + "/none"}, []string{"HQL_SECRET_RAFT_FILE = " + folder + "/none", "no such file"}},
		"folder":                 {Node, node, []string{"HQL_SECRET_RAFT_FILE=" + folder, "HQL_SECRETS_FILE=" + folder}, []string{"HQL_SECRET_RAFT_FILE = " + folder + ": this is a folder", folder + ": this is a folder"}},
		"huge file":              {Node, node, []string{"HQL_SECRET_RAFT_FILE=/proc/self/exe"}, []string{"larger than 65536 bytes"}},
		"short secret":           {Node, node, []string{"HQL_SECRET_RAFT=hunter2"}, []string{"HQL_SECRET_RAFT = [redacted]: ", "the secret has 7 bytes, and needs at least 16"}},
		"secret twice":           {Node, node + fmt.Sprintf("secrets_file = %q\nsecret_raft = %q", secrets, raftSecret), nil, []string{"secret_raft: it is in ", "keep it in one of them"}},
		"setting among secrets":  {Node, node, []string{"HQL_SECRETS_FILE=" + notOnlySecrets}, []string{"other.toml:1", "tick is not a secret: move it"}},
		"stranger to the list":   {Node, node, []string{"HQL_NODE_ID=3", "HQL_NODES=1 a:1,2 b:1"}, []string{"node 3 is not in the list of nodes"}},
		"bad lists":              {Node, node, []string{"HQL_NODES=1=a:8100/8200,2 b:1 c d"}, []string{`"1=a:8100/8200" is not "id raft_addr api_addr"`, `"2 b:1 c d" is not`}},
		"id and ordinal":         {Node, node, []string{"HQL_NODE_ID=1", "HQL_NODE_ID_FROM=k8s"}, []string{"HQL_NODE_ID", "is node 1", "db-2", "node 3", "leave one of them out"}},
		"no data folder":         {Server, "", nil, []string{"set HQL_DATA_DIR (data_dir in hiqlite.toml)", "hiqlite generate-config"}},
		"open to all":            {Server, node, []string{"HQL_LISTEN_ADDR_API=0.0.0.0"}, []string{"0.0.0.0:8200, which is not loopback, so it needs a secret: set HQL_SECRET_API"}},
		"listen without a port":  {Server, node, []string{"HQL_LISTEN_ADDR_RAFT=10.0.0.1"}, []string{"has no port"}},
		"bad listen":             {Server, node, []string{"HQL_LISTEN_ADDR_API=http://a:1"}, []string{"HQL_LISTEN_ADDR_API = http://a:1"}},
		"half a certificate":     {Node, node, []string{"HQL_TLS_API_CERT=c.pem"}, []string{"HQL_TLS_API_CERT", "HQL_TLS_API_KEY", "without each other"}},
		"no authority":           {Node, node, []string{"HQL_TLS_RAFT_CERT=c.pem", "HQL_TLS_RAFT_KEY=k.pem"}, []string{"needs HQL_TLS_RAFT_CA"}},
		"encrypted by nothing":   {Server, node, []string{"HQL_TLS_API=true"}, []string{"HQL_TLS_API", "needs HQL_SECRET_API"}},
		"burst without a rate":   {Node, node, []string{"HQL_RL_DB_BURST=5"}, []string{"has no effect without HQL_RL_DB_RPS"}},
		"proxy for nobody":       {Proxy, "", nil, []string{"set HQL_NODES", "set HQL_SECRET_API"}},
		"proxy for Raft":         {Proxy, "", []string{"HQL_NODES=1 a:1", "HQL_SECRET_API=" + apiSecret}, []string{"node 1 has no address for clients"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := load(t, c.role, write(t, "hiqlite.toml", c.file), c.environ...)
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error\n%v\nlacks %q", err, want)
				}
			}
			if strings.Contains(err.Error(), raftSecret) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the error shows a secret: %v", err)
			}
		})
	}
	if os.Getuid() != 0 { // root may read everything
		if _, err := load(t, Node, "", "HQL_DATA_DIR=d", "HQL_SECRET_RAFT_FILE="+unreadable); err == nil || !strings.Contains(err.Error(), "permission denied") {
			t.Errorf("a file that may not be read: %v", err)
		}
	}
}

func TestAllFaultsAtOnce(t *testing.T) {
	file := write(t, "hiqlite.toml", "tick = 50\nnodeid = 1\nlog_level = \"loud\"")
	_, err := load(t, Node, file, "HQL_READ_POOL_SIZE=many", "HQL_DATADIR=x")
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"tick", "nodeid", "log_level", "HQL_READ_POOL_SIZE", "HQL_DATADIR", "no folder for the data"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q lacks %s", err, want)
		}
	}
}

func TestTheFileMustExistIfItIsNamed(t *testing.T) {
	none := filepath.Join(t.TempDir(), "none.toml")
	for _, opts := range []Options{{File: none, Environ: []string{}}, {Environ: []string{"HQL_CONFIG=" + none}}} {
		if _, err := Load(opts); err == nil || !strings.Contains(err.Error(), "no such file") {
			t.Errorf("%+v: %v", opts, err)
		}
	}
	t.Chdir(t.TempDir())
	if _, err := Load(Options{Environ: []string{"HQL_DATA_DIR=d"}}); err != nil {
		t.Errorf("without a file: %v", err)
	}
	if err := os.Mkdir("hiqlite.toml", 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(Options{Environ: []string{"HQL_DATA_DIR=d"}}); err == nil || !strings.Contains(err.Error(), "this is a folder") {
		t.Errorf("hiqlite.toml is a folder: %v", err)
	}
}

func TestOrdinal(t *testing.T) {
	for host, want := range map[string]uint64{"hiqlite-0": 1, "my-db-12": 13, "hiqlite-2.hiqlite.default.svc.cluster.local": 3} {
		if got, err := ordinal(host); err != nil || got != want {
			t.Errorf("%s is node %d, %v, want %d", host, got, err, want)
		}
	}
	for _, host := range []string{"", "hiqlite", "hiqlite-", "hiqlite-x", "hiqlite-99999999999", "10-0.a-b"} {
		if got, err := ordinal(host); err == nil && host != "10-0.a-b" {
			t.Errorf("%q is node %d", host, got)
		}
	}
}

func TestSecretsAreNotShown(t *testing.T) {
	s := mustLoad(t, Node, "", "HQL_DATA_DIR=d", "HQL_SECRET_RAFT="+raftSecret, "HQL_SECRET_API="+apiSecret)
	var b bytes.Buffer
	fmt.Fprintf(&b, "%v %+v %#v %s %q %x", s.Node.Secret, s.API, s.API, s.API.Secret, s.API.Secret, s.API.Secret)
	slog.New(slog.NewJSONHandler(&b, nil)).Info("x", "secret", s.API.Secret, "api", s.API)
	if err := json.NewEncoder(&b).Encode(s.API); err != nil {
		t.Fatal(err)
	}
	if text := b.String(); strings.Contains(text, "secret of") || strings.Contains(text, fmt.Sprintf("%x", apiSecret)) || !strings.Contains(text, "[redacted]") {
		t.Errorf("printed as %s", text)
	}
}

// docs/configuration.md has the table of this package.
func TestTheManualHasTheTable(t *testing.T) {
	const file = "../../docs/configuration.md"
	const begin, end = "<!-- The tables are made by UPDATE=1 go test ./internal/settings. -->\n", "<!-- End of the tables. -->\n"
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(b), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the tables", file)
	}
	want := before + begin + Markdown() + "\n" + end + after
	if want == string(b) {
		return
	}
	if os.Getenv("UPDATE") == "" {
		t.Fatalf("%s is not the table of this package: run UPDATE=1 go test ./internal/settings", file)
	}
	if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}

// A generated file is complete, and works without changes; its samples are valid.
func TestGenerate(t *testing.T) {
	dir := t.TempDir()
	main, secrets := filepath.Join(dir, "hiqlite.toml"), filepath.Join(dir, "secrets.toml")
	var file, apart bytes.Buffer
	if err := Generate(&file, &apart, secrets); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]*bytes.Buffer{main: &file, secrets: &apart} {
		if err := os.WriteFile(name, b.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := mustLoad(t, Server, main)
	if !s.Node.Secret.Set() || !s.API.Secret.Set() || s.Node.Secret.Text() == s.API.Secret.Text() || s.Warnings != nil {
		t.Errorf("no fresh secrets; warnings %v", s.Warnings)
	}
	if strings.Contains(file.String(), s.API.Secret.Text()) {
		t.Error("the secret is not apart")
	}
	var together bytes.Buffer
	if err := Generate(&together, nil, ""); err != nil {
		t.Fatal(err)
	}
	mustLoad(t, Server, write(t, "one.toml", together.String()))
	for _, setting := range table {
		if !strings.Contains(together.String(), "\n"+setting.Key+" = ") && !strings.Contains(together.String(), "\n#"+setting.Key+" = ") {
			t.Errorf("the file lacks %s", setting.Key)
		}
	}
	// With all of its samples.
	var all []string
	for line := range strings.Lines(together.String()) {
		if strings.HasPrefix(line, "#") && !strings.HasPrefix(line, "# ") && !strings.HasPrefix(line, "#\n") && !strings.HasPrefix(line, "#node_id_from") && !strings.HasPrefix(line, "#secrets_file") {
			line = line[1:]
		}
		all = append(all, line)
	}
	mustLoad(t, Server, write(t, "all.toml", strings.Join(all, "")), "HQL_INSECURE=true")
}
