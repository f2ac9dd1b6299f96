//go:build unix

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite/internal/loopback"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// A deployment is what the files of deploy/ start, on loopback.
type deployment struct {
	t                        *testing.T
	nodeArgs, proxyArgs      []string
	secretRaft, secretAPI    string   // files
	raft, api                []string // addresses
	proxyAddress, dataFolder string
	nodes                    []*process
}

// find returns the first group of a regular expression in a file.
func find(t *testing.T, file, expression string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)` + expression).FindSubmatch(b)
	if found == nil {
		t.Fatalf("%s has nothing like %s", file, expression)
	}
	return string(found[1])
}

func newDeployment(t *testing.T, secretRaft, secretAPI string) *deployment {
	t.Helper()
	d := &deployment{t: t, dataFolder: t.TempDir(), secretRaft: filepath.Join(t.TempDir(), "secret_raft"), secretAPI: filepath.Join(t.TempDir(), "secret_api")}
	for file, secret := range map[string]string{d.secretRaft: secretRaft, d.secretAPI: secretAPI} {
		if err := os.WriteFile(file, []byte(secret), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	addresses, err := loopback.Addresses(7)
	if err != nil {
		t.Fatal(err)
	}
	d.raft, d.api, d.proxyAddress = addresses[:3], addresses[3:6], addresses[6]
	return d
}

// environ returns the settings that make a deployment one on loopback.
func (d *deployment) environ(listenRaft, listenAPI string) []string {
	var nodes []string
	for i := range 3 {
		nodes = append(nodes, fmt.Sprintf("%d %s %s", i+1, d.raft[i], d.api[i]))
	}
	environ := []string{"HQL_NODES=" + strings.Join(nodes, "\n"), "HQL_SECRET_API_FILE=" + d.secretAPI, "HQL_LISTEN_ADDR_API=" + listenAPI}
	if listenRaft != "" {
		environ = append(environ, "HQL_LISTEN_ADDR_RAFT="+listenRaft, "HQL_SECRET_RAFT_FILE="+d.secretRaft)
	}
	return environ
}

func (d *deployment) startNode(i int) *process {
	environ := append(d.environ(d.raft[i], d.api[i]), fmt.Sprintf("HQL_NODE_ID=%d", i+1), fmt.Sprintf("HQL_DATA_DIR=%s/%d", d.dataFolder, i+1))
	return start(d.t, environ, d.nodeArgs...)
}

// dsn returns the remote DSN of addresses.
func (d *deployment) dsn(addresses ...string) string {
	return "hiqlite://" + strings.Join(addresses, ",") + "?secret_file=" + d.secretAPI
}

func (d *deployment) waitReady(address string) {
	d.t.Helper()
	waitFor(d.t, address+" is ready", func() bool { status, _ := get("https://" + address + "/ready"); return status == 200 })
}

// The commands of deploy/k8s, with its settings and its probes.
func TestKubernetes(t *testing.T) {
	const folder = "../../deploy/k8s/"
	d := newDeployment(t, find(t, folder+"secret.yaml", `secret_raft: (published.*)$`), find(t, folder+"secret.yaml", `secret_api: (published.*)$`))
	settings := filepath.Join(t.TempDir(), "hiqlite.toml")
	text := regexp.MustCompile(`(?m)^    `).ReplaceAllString(find(t, folder+"config.yaml", `(?s)hiqlite\.toml: \|\n(.*)`), "")
	if err := os.WriteFile(settings, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	args := func(file string) (args []string) {
		if err := json.Unmarshal([]byte(find(t, folder+file, `args: (\[.*\])`)), &args); err != nil {
			t.Fatal(err)
		}
		if args[2] != "/etc/hiqlite/hiqlite.toml" {
			t.Fatalf("the arguments are %q", args)
		}
		args[2] = settings
		return args
	}
	d.nodeArgs, d.proxyArgs = args("nodes.yaml"), args("proxy.yaml")
	for i := range 3 {
		d.nodes = append(d.nodes, d.startNode(i))
	}
	proxy := start(t, d.environ("", d.proxyAddress), d.proxyArgs...)
	for _, address := range append(d.api, d.proxyAddress) {
		d.waitReady(address)
	}
	throughProxy, throughNode := d.dsn(d.proxyAddress), d.dsn(d.api[1])
	must(t, "", "sql", throughProxy, "CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT)")
	must(t, "", "sql", throughNode, "INSERT INTO t(a) VALUES('x')")
	if got := must(t, "", "sql", throughProxy+"&consistency=linearizable", "SELECT a FROM t", "--mode=list"); got != "x\n" {
		t.Errorf("the proxy reads %q", got)
	}

	// The command line on servers.
	must(t, "", "kv", "put", "b", "k", "v", "--dsn", throughProxy)
	if got := must(t, "", "kv", "get", "b", "k", "--dsn", throughNode); got != "v" {
		t.Errorf("the key has %q", got)
	}
	if o := cli(t, "", "lock", "--dsn", throughNode, "nightly", "--", "sh", "-c", "exit 5"); o.code != 5 {
		t.Errorf("%+v", o)
	}
	must(t, "", "notify", "--dsn", throughProxy, "c", "hello")
	if got := must(t, "", "listen", "--dsn", throughNode, "c", "--after", "0", "--count", "1"); got != "hello\n" {
		t.Errorf("listened to %q", got)
	}
	dump := must(t, "", "sql", throughProxy, ".dump")
	if !strings.Contains(dump, `INSERT INTO "t" VALUES(1,'x');`) {
		t.Errorf("the dump is %s", dump)
	}
	file := filepath.Join(t.TempDir(), "rows.csv")
	if err := os.WriteFile(file, []byte("7,\"a\nb\"\n8,c\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	must(t, "", "sql", throughProxy, ".import "+file+" t")
	o := cli(t, "", "sql", "hiqlite://"+d.api[0]+"?insecure=true&reconnect_timeout=100ms", "SELECT 1")
	if o.code == 0 {
		t.Errorf("without the secret: %+v", o)
	}

	figures := must(t, "", "bench", "--dsn", throughProxy, "--concurrency=4", "--rows=100", "--json")
	if !strings.Contains(figures, `"nodes":3,"concurrency":4,`) {
		t.Errorf("bench prints %s", figures)
	}
	if got := must(t, "", "sql", throughNode, ".tables"); got != "t\n" {
		t.Errorf("after bench there are the tables %q", got)
	}

	// SIGTERM to the leader: it ends in time, and the others go on.
	var s statusReport
	if err := json.Unmarshal([]byte(must(t, "", "status", throughProxy, "--json")), &s); err != nil {
		t.Fatal(err)
	}
	if s.Leader == 0 || len(s.Members) != 3 {
		t.Fatalf("the status is %+v", s)
	}
	leader := d.nodes[s.Leader-1]
	began := time.Now()
	leader.signal(syscall.SIGTERM)
	if code := leader.code(); code != 0 || time.Since(began) > 5*time.Second {
		t.Errorf("the leader ended with %d after %v", code, time.Since(began))
	}
	must(t, "", "sql", throughProxy, "INSERT INTO t(a) VALUES('after')")
	t.Logf("an insert succeeded %v after SIGTERM to the leader", time.Since(began))
	began = time.Now()
	proxy.signal(syscall.SIGTERM)
	if code := proxy.code(); code != 0 || time.Since(began) > 5*time.Second {
		t.Errorf("the proxy ended with %d after %v", code, time.Since(began))
	}
}

// The unit of deploy/systemd, with its settings.
func TestSystemd(t *testing.T) {
	const folder = "../../deploy/systemd/"
	d := newDeployment(t, "unused secret of the test", "unused secret of the test")
	command := strings.Fields(find(t, folder+"hiqlite@.service", `^ExecStart=/usr/local/bin/hiqlite (.*)$`))
	settings, err := filepath.Abs(folder + "hiqlite.toml")
	if err != nil {
		t.Fatal(err)
	}
	var nodes []string
	for i := range 3 {
		nodes = append(nodes, fmt.Sprintf("%d %s %s", i+1, d.raft[i], d.api[i]))
	}
	for i := range 3 {
		args := append([]string{}, command...)
		for n, a := range args {
			args[n] = strings.ReplaceAll(a, "${CREDENTIALS_DIRECTORY}/hiqlite.toml", settings)
		}
		start(t, []string{fmt.Sprintf("HQL_NODE_ID=%d", i+1), fmt.Sprintf("HQL_DATA_DIR=%s/%d", d.dataFolder, i+1), "HQL_NODES=" + strings.Join(nodes, ",")}, args...)
	}
	for _, address := range d.api {
		waitFor(t, address+" is ready", func() bool { status, _ := get("http://" + address + "/ready"); return status == 200 })
	}
	if got := must(t, "", "sql", "hiqlite://"+d.api[2], "SELECT 1", "--mode=list"); got != "1\n" {
		t.Errorf("%q", got)
	}
}

// The services of deploy/compose, and its check of their health.
func TestCompose(t *testing.T) {
	const folder = "../../deploy/compose/"
	read := func(name string) string {
		b, err := os.ReadFile(folder + name)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	d := newDeployment(t, read("secret_raft"), read("secret_api"))
	d.nodeArgs = []string{find(t, folder+"compose.yaml", `command: \[(serve)\]`)}
	d.proxyArgs = []string{find(t, folder+"compose.yaml", `command: \[(proxy)\]`)}
	check := strings.Split(find(t, folder+"compose.yaml", `test: \[CMD, /hiqlite, (.*)\]`), ", ")
	for i := range 3 {
		d.startNode(i)
	}
	start(t, d.environ("", d.proxyAddress), d.proxyArgs...)
	for _, address := range append(d.api, d.proxyAddress) {
		for n, a := range check {
			if strings.Contains(a, "://") {
				check[n] = `"` + d.dsn(address) + `"`
			}
		}
		args := strings.Split(strings.ReplaceAll(strings.Join(check, "\n"), `"`, ""), "\n")
		for deadline := time.Now().Add(testrun.Patience); ; {
			o := cli(t, "", args...)
			if o.code == 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%q: %+v", args, o)
			}
			time.Sleep(100 * time.Millisecond) // between two checks
		}
	}
}
