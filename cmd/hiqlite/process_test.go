//go:build unix

package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite/internal/loopback"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// A process is the command in a process of its own.
type process struct {
	*exec.Cmd
	t    *testing.T
	out  bytes.Buffer
	errs lockedBuffer
	done chan struct{}
}

// lockedBuffer can be read while a process writes it.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// commandLine returns the command with an environment that has no settings but these.
func commandLine(t *testing.T, environ []string, args ...string) *exec.Cmd {
	t.Helper()
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(binary, args...)
	c.Dir = t.TempDir()
	c.Env = append([]string{"HIQLITE_TEST_COMMAND=1", "PATH=" + os.Getenv("PATH"), "HOME=" + c.Dir, "TERM=xterm"}, environ...)
	return c
}

// start starts the command, and kills it at the end of the test.
func start(t *testing.T, environ []string, args ...string) *process {
	t.Helper()
	p := &process{Cmd: commandLine(t, environ, args...), t: t, done: make(chan struct{})}
	p.Stdout, p.Stderr = &p.out, &p.errs
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.Wait() // the tests look at ProcessState
		close(p.done)
	}()
	t.Cleanup(func() {
		_ = p.Process.Kill()
		<-p.done
		if t.Failed() {
			t.Logf("%q wrote:\n%s", args, p.errs.String())
		}
	})
	return p
}

// code waits for the end of the process and returns its exit code.
func (p *process) code() int {
	p.t.Helper()
	select {
	case <-p.done:
		return p.ProcessState.ExitCode()
	case <-time.After(testrun.Patience):
		p.t.Fatal("the process does not end")
		return -1
	}
}

func (p *process) signal(s os.Signal) {
	p.t.Helper()
	if err := p.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// get returns the status and the body of an answer; 0 if there is none. As the probes of
// Kubernetes, it trusts any certificate.
func get(url string) (status int, body string) {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer client.CloseIdleConnections()
	r, err := client.Get(url)
	if err != nil {
		return 0, err.Error()
	}
	defer r.Body.Close()
	b, _ := io.ReadAll(r.Body)
	return r.StatusCode, string(b)
}

func waitFor(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(testrun.Patience); !f(); {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, testrun.Patience)
		}
		time.Sleep(20 * time.Millisecond) // between two looks at another process
	}
}

func TestServe(t *testing.T) {
	addresses, err := loopback.Addresses(1)
	if err != nil {
		t.Fatal(err)
	}
	api := "http://" + addresses[0]
	data := filepath.Join(t.TempDir(), "data")
	environ := []string{"HQL_DATA_DIR=" + data, "HQL_LISTEN_ADDR_API=" + addresses[0], "HQL_LOG_FORMAT=json"}
	for round := range 2 { // the second one opens what the first one has left
		p := start(t, environ, "serve")
		waitFor(t, "ready", func() bool { status, _ := get(api + "/ready"); return status == 200 })
		for _, path := range []string{"/ping", "/health"} {
			if status, body := get(api + path); status != 200 {
				t.Errorf("%s: %d %s", path, status, body)
			}
		}
		if round == 0 {
			second := start(t, environ, "serve")
			if code := second.code(); code != exitFailed || !strings.Contains(second.errs.String(), "address already in use") {
				t.Errorf("a second server on the address: exit code %d, %s", code, second.errs.String())
			}
			other := start(t, environ, "sql", data, "SELECT 1")
			if code := other.code(); code != exitUsage {
				t.Errorf("a second process in the folder: exit code %d, %s", code, other.errs.String())
			}
		}
		began := time.Now()
		p.signal(syscall.SIGTERM)
		if code := p.code(); code != 0 || time.Since(began) > 5*time.Second {
			t.Errorf("ended with %d after %v", code, time.Since(began))
		}
		if log := p.errs.String(); !strings.Contains(log, `"msg":"hiqlite: serving"`) || !strings.Contains(log, `"msg":"hiqlite: ended"`) || strings.Contains(log, "WARN") {
			t.Errorf("the log is\n%s", log)
		}
	}
}

// certificate makes a certificate that signs itself, for a host, and writes it and its
// key.
func certificate(t *testing.T, host, certFile, keyFile string) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.ParseIP(host)},
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(nil, template, template, public, private)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: key}} {
		if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// Clients recognise a server and a proxy by the authority of their certificates, and the
// server uses a new certificate without a restart.
func TestServeWithCertificates(t *testing.T) {
	addresses, err := loopback.Addresses(2)
	if err != nil {
		t.Fatal(err)
	}
	host, _, err := net.SplitHostPort(addresses[0])
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key, secret := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte("the secret of this test"), 0o600); err != nil {
		t.Fatal(err)
	}
	certificate(t, host, cert, key)
	environ := []string{"HQL_DATA_DIR=" + filepath.Join(dir, "data"), "HQL_NODES=1 " + host + ":1 " + addresses[0],
		"HQL_SECRET_API_FILE=" + secret, "HQL_TLS_API_CERT=" + cert, "HQL_TLS_API_KEY_FILE=" + key, "HQL_TLS_API_CA=" + cert}
	start(t, environ, "serve")
	start(t, append(environ, "HQL_LISTEN_ADDR_API="+addresses[1]), "proxy")
	for round := range 2 {
		for _, address := range addresses[:2-round] { // the proxy has read the first authority
			waitFor(t, "ready", func() bool { status, _ := get("https://" + address + "/ready"); return status == 200 })
			dsn := "hiqlite://" + address + "?secret_file=" + secret
			if got := must(t, "", "sql", dsn+"&tls_ca_file="+cert, "SELECT 1", "--mode=list"); got != "1\n" {
				t.Errorf("with the authority: %q", got)
			}
			if o := cli(t, "", "sql", dsn+"&reconnect_timeout=1h", "SELECT 1"); o.code != 4 {
				t.Errorf("a client that expects the key of the secret and meets a certificate: %+v", o)
			}
			if o := cli(t, "", "sql", dsn+"&insecure=true&reconnect_timeout=1h", "SELECT 1"); o.code != 4 || !strings.Contains(o.err, "the server uses TLS") {
				t.Errorf("a client without TLS: %+v", o)
			}
		}
		certificate(t, host, cert, key)
	}
}

// A request that runs when SIGTERM comes gets its answer, and a second signal does not
// wait for anything.
func TestSIGTERMWaitsForRequests(t *testing.T) {
	addresses, err := loopback.Addresses(1)
	if err != nil {
		t.Fatal(err)
	}
	environ := []string{"HQL_DATA_DIR=" + t.TempDir(), "HQL_LISTEN_ADDR_API=" + addresses[0], "HQL_SHUTDOWN_TIMEOUT=1m", "HQL_LOG_STATEMENTS=true"}
	const query = "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c LIMIT %d) SELECT count(*) FROM c"
	for _, twice := range []bool{false, true} {
		p := start(t, environ, "serve")
		waitFor(t, "ready", func() bool { status, _ := get("http://" + addresses[0] + "/ready"); return status == 200 })
		rows := 3_000_000 // about a second
		if twice {
			rows = 3_000_000_000
		}
		answer := start(t, nil, "sql", "hiqlite://"+addresses[0]+"?timeout=5m", fmt.Sprintf(query, rows), "--mode=list")
		waitFor(t, "the query runs", func() bool { return strings.Contains(p.errs.String(), "WITH RECURSIVE") })
		p.signal(syscall.SIGTERM)
		if twice {
			waitFor(t, "the server ends", func() bool { return strings.Contains(p.errs.String(), "hiqlite: ending") })
			p.signal(syscall.SIGTERM)
			if code := p.code(); code != -1 { // killed by the signal
				t.Errorf("after two signals: exit code %d", code)
			}
			continue
		}
		if code := answer.code(); code != 0 || answer.out.String() != fmt.Sprintln(rows) {
			t.Errorf("the query: exit code %d, %q, %s", code, answer.out.String(), answer.errs.String())
		}
		if code := p.code(); code != 0 {
			t.Errorf("exit code %d", code)
		}
	}
}

func TestServeRefusesBadSettings(t *testing.T) {
	p := start(t, []string{"HQL_TICK=50", "HQL_DATADIR=x", "HQL_LISTEN_ADDR_API=0.0.0.0:1"}, "serve")
	if code := p.code(); code != exitUsage {
		t.Errorf("exit code %d", code)
	}
	lines := strings.Split(strings.TrimSpace(p.errs.String()), "\n")
	if len(lines) < 4 {
		t.Errorf("not all errors are printed: %q", lines)
	}
	for _, line := range lines {
		if !strings.HasPrefix(line, "hiqlite: ") {
			t.Errorf("the line %q does not say which program wrote it", line)
		}
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	p = start(t, []string{"HQL_DATA_DIR=data", "HQL_LISTEN_ADDR_API=" + taken.Addr().String()}, "serve", "--config", "/none.toml")
	if code := p.code(); code != exitUsage || !strings.Contains(p.errs.String(), "/none.toml: ") {
		t.Errorf("exit code %d, %s", code, p.errs.String())
	}
}

// A lock whose process is stopped for longer than its TTL is lost. The command is
// ended, so that two commands never run for long.
func TestTheLostLockEndsItsCommand(t *testing.T) {
	data := t.TempDir()
	marker := filepath.Join(t.TempDir(), "pid")
	p := start(t, nil, "lock", "--dsn", data, "--ttl", "1s", "k", "--", "sh", "-c", "trap '' TERM; echo $$ > "+marker+"; sleep 100 & wait; sleep 100")
	var pid int
	waitFor(t, "the command", func() bool {
		b, _ := os.ReadFile(marker)
		pid, _ = strconv.Atoi(strings.TrimSpace(string(b)))
		return pid != 0
	})
	p.signal(syscall.SIGSTOP)
	time.Sleep(1500 * time.Millisecond) // the TTL passes while the process sleeps
	p.signal(syscall.SIGCONT)
	if code := p.code(); code != exitLockLost || !strings.Contains(p.errs.String(), "was lost") {
		t.Errorf("exit code %d, %s", code, p.errs.String())
	}
	waitFor(t, "the end of the command", func() bool { return syscall.Kill(pid, 0) != nil })
}

// SIGTERM goes to the command, whose exit code is returned, and the lock is free.
func TestLockPassesSignalsOn(t *testing.T) {
	data := t.TempDir()
	marker := filepath.Join(t.TempDir(), "ready")
	p := start(t, nil, "lock", "--dsn", data, "k", "--", "sh", "-c", "trap 'exit 9' TERM; touch "+marker+"; while :; do sleep 0.1; done")
	waitFor(t, "the command", func() bool { _, err := os.Stat(marker); return err == nil })
	p.signal(syscall.SIGTERM)
	if code := p.code(); code != 9 {
		t.Errorf("exit code %d, %s", code, p.errs.String())
	}
	if again := start(t, nil, "lock", "--dsn", data, "--try", "k", "--", "true"); again.code() != 0 {
		t.Errorf("the lock is not free: %s", again.errs.String())
	}
}

// The memory of an import does not grow with the file.
func TestImportOfManyRows(t *testing.T) {
	const rows = 1_000_000
	file := filepath.Join(t.TempDir(), "rows.csv")
	var b bytes.Buffer
	b.WriteString("id,name,note\n")
	for i := range rows {
		fmt.Fprintf(&b, "%d,\"name \"\"%d\"\"\",\"two\nlines, of row %d\"\n", i, i, i)
	}
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	data := t.TempDir()
	began := time.Now()
	p := start(t, nil, "sql", data, ".import "+file+" t")
	peak := 0
	for running := true; running; {
		select {
		case <-p.done:
			running = false
		case <-time.After(20 * time.Millisecond):
			peak = max(peak, residentMiB(p.Process.Pid))
		}
	}
	if code := p.code(); code != 0 {
		t.Fatalf("exit code %d: %s", code, p.errs.String())
	}
	t.Logf("%d rows of %d MiB in %v, with at most %d MiB of memory", rows, b.Len()>>20, time.Since(began).Round(time.Millisecond), peak)
	if peak > 300 {
		t.Errorf("the import used %d MiB", peak)
	}
	query := start(t, nil, "sql", data, "SELECT count(*), sum(length(note)), max(name) FROM t", "--mode=list")
	if query.code() != 0 || !strings.HasPrefix(query.out.String(), fmt.Sprintf("%d|", rows)) || !strings.HasSuffix(query.out.String(), "\"\n") {
		t.Errorf("the table has %s; %s", query.out.String(), query.errs.String())
	}
}

// residentMiB returns the memory of a process; 0 if this system does not tell.
func residentMiB(pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	fields := strings.Fields(string(b))
	if err != nil || len(fields) < 2 {
		return 0
	}
	pages, _ := strconv.Atoi(fields[1])
	return pages * os.Getpagesize() >> 20
}
