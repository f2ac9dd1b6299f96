package server_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/hiqlite/hiqlite"
	apiv1 "github.com/hiqlite/hiqlite/api/hiqlite/v1"
	"github.com/hiqlite/hiqlite/api/hiqlite/v1/hiqlitev1connect"
	"github.com/hiqlite/hiqlite/hiqlitetest"
	"github.com/hiqlite/hiqlite/internal/protocol"
	"github.com/hiqlite/hiqlite/internal/server"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// serve serves a node with a configuration of the server, and returns the address.
func serve(t testing.TB, cfg server.Config) (*server.Server, string) {
	t.Helper()
	s, err := server.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() { _ = s.Serve(l) }) // http.ErrServerClosed
	t.Cleanup(func() { s.Close(); served.Wait() })
	return s, l.Addr().String()
}

// httpClient returns a client that speaks HTTP/2 without TLS, or HTTP/1.1.
func httpClient(t testing.TB, http2 bool) *http.Client {
	t.Helper()
	protocols := new(http.Protocols)
	protocols.SetHTTP1(!http2)
	protocols.SetUnencryptedHTTP2(http2)
	transport := &http.Transport{Protocols: protocols}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func post(t *testing.T, url, body string, header ...string) (code int, answer string) {
	t.Helper()
	r, err := http.NewRequestWithContext(testrun.Context(t), "POST", url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	response, err := httpClient(t, false).Do(r)
	if err != nil {
		return 0, err.Error()
	}
	defer response.Body.Close()
	text, _ := io.ReadAll(response.Body)
	return response.StatusCode, string(text)
}

const (
	execute = "/hiqlite.v1.Database/Execute"
	query   = "/hiqlite.v1.Database/Query"
)

// Each bad request gets a clear error, and the server goes on.
func TestBadRequests(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 1)
	s, address := serve(t, server.Config{Backend: c.Node(0), Limits: server.Limits{MaxBody: 1 << 20, MaxRows: 10, MaxResult: 10_000, MaxTime: 2 * time.Second}})
	url := "http://" + address
	big := strings.Repeat("x", 2<<20)
	for name, x := range map[string]struct {
		path, body string
		code       int
		want       string
	}{
		"no JSON":            {execute, "no JSON", 400, "invalid_argument"},
		"no body":            {execute, "", 400, "send {}"},
		"unknown field":      {execute, `{"statement":[]}`, 400, "statement"},
		"wrong type":         {execute, `{"statements":7}`, 400, "invalid_argument"},
		"syntax error":       {execute, `{"statements":[{"sql":"SELEC 1"}]}`, 400, "syntax error"},
		"too large":          {execute, `{"statements":[{"sql":"` + big + `"}]}`, 429, "larger than"},
		"unknown method":     {"/hiqlite.v1.Database/Drop", "{}", 404, ""},
		"unknown service":    {"/x", "{}", 404, ""},
		"BEGIN":              {execute, `{"statements":[{"sql":"BEGIN"}]}`, 400, "unary call"},
		"too many rows":      {query, `{"statement":{"sql":"SELECT value FROM json_each('[1,2,3,4,5,6,7,8,9,10,11]')"}}`, 429, "LIMIT"},
		"too large a result": {query, `{"statement":{"sql":"SELECT hex(zeroblob(20000))"}}`, 429, "LIMIT"},
		"too long":           {query, `{"statement":{"sql":"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n) SELECT i FROM n WHERE i<0"}}`, 504, "deadline"},
		"bad command":        {"/hiqlite.v1.Shards/Do", `{"shard":"SHARD_KV","command":"/w=="}`, 400, "malformed"},
		"no shard":           {"/hiqlite.v1.Shards/Do", `{}`, 400, "no such shard"},
		"a lock of the node": {"/hiqlite.v1.Shards/Do", `{"shard":"SHARD_LOCK","command":"CBQ="}`, 400, "origin"},
		"empty key":          {"/hiqlite.v1.KV/Put", `{"bucket":"b"}`, 400, "0 bytes"},
		"missing argument":   {execute, `{"statements":[{"sql":"SELECT ?"}]}`, 400, "missing argument"},
	} {
		code, answer := post(t, url+x.path, x.body)
		if code != x.code || !strings.Contains(answer, x.want) {
			t.Errorf("%s: %d %.300s, want %d with %q", name, code, answer, x.code, x.want)
		}
	}
	if n := s.Counters(); n.TooLarge < 3 || n.Malformed != 4 {
		t.Errorf("the server has counted %d that are too large, and %d malformed", n.TooLarge, n.Malformed)
	}
	if got := fmt.Sprint(s.Counters().Refused(server.Counters{})); !strings.Contains(got, "too_large") || !strings.Contains(got, "malformed 4") || strings.Contains(got, "unauthorized") {
		t.Errorf("the log says %s", got)
	}
	if code, answer := post(t, url+query, `{"statement":{"sql":"SELECT 1 AS one, NULL, x'00', 'a', 0.5"}}`); code != 200 || !json.Valid([]byte(answer)) {
		t.Errorf("then: %d %s", code, answer)
	}
}

// An error of SQLite comes with its code, for programs in any language.
func TestErrorDetails(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 1)
	_, address := serve(t, server.Config{Backend: c.Node(0)})
	code, answer := post(t, "http://"+address+execute, `{"statements":[{"sql":"CREATE TABLE t(a UNIQUE)"},{"sql":"INSERT INTO t VALUES(1)"},{"sql":"INSERT INTO t VALUES(1)"}]}`)
	for _, want := range []string{`"statement":2`, `"code":2067`, "UNIQUE constraint failed: t.a"} {
		if code != 400 || !strings.Contains(strings.ReplaceAll(answer, " ", ""), strings.ReplaceAll(want, " ", "")) {
			t.Errorf("%d %s, want %s", code, answer, want)
		}
	}
}

// A stranger without the secret gets nothing, ever more slowly; who has it is not delayed.
func TestSecret(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 1)
	const secret = "a secret of the tests"
	s, address := serve(t, server.Config{Backend: c.Node(0), Secret: secret})
	url := "http://" + address
	began := time.Now()
	for range 6 {
		if code, answer := post(t, url+execute, "{}", "Authorization", "Bearer wrong"); code != 401 || !strings.Contains(answer, "unauthenticated") {
			t.Errorf("a wrong secret: %d %s", code, answer)
		}
	}
	if took := time.Since(began); took < 300*time.Millisecond {
		t.Errorf("six failures took %v", took)
	}
	if code, _ := post(t, url+execute, "{}"); code != 401 {
		t.Errorf("no secret: %d", code)
	}
	if code, _ := post(t, url+execute, "{}", "Authorization", secret); code != 401 {
		t.Errorf("without Bearer: %d", code)
	}
	if n := s.Counters().Unauthorized; n != 8 {
		t.Errorf("the server has counted %d", n)
	}
	if code, answer := post(t, url+execute, "{}", "Authorization", "Bearer "+secret); code != 200 {
		t.Errorf("the secret: %d %s", code, answer)
	}
	for _, path := range []string{"/health", "/ready", "/ping"} {
		response, err := httpClient(t, false).Get(url + path)
		if err != nil || response.StatusCode != 200 {
			t.Errorf("%s: %v, %v", path, response, err)
		}
		response.Body.Close()
	}
	for _, wrong := range []string{"", "another secret of the tests"} {
		cfg := hiqlite.RemoteConfig{Addresses: []string{address}, Insecure: true}
		if wrong != "" {
			cfg.Secret, _ = hiqlite.NewSecret([]byte(wrong))
		}
		if _, err := hiqlite.Dial(testrun.Context(t), cfg); !errors.Is(err, hiqlite.ErrUnauthorized) {
			t.Errorf("Dial with %q: %v", wrong, err)
		}
		remote, err := hiqlite.NewRemote(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := remote.DB().ExecContext(testrun.Context(t), "SELECT 1"); !errors.Is(err, hiqlite.ErrUnauthorized) {
			t.Errorf("a statement with %q: %v", wrong, err)
		}
		remote.Close()
	}
	own, _ := hiqlite.NewSecret([]byte(secret))
	remote, err := hiqlite.Dial(testrun.Context(t), hiqlite.RemoteConfig{Addresses: []string{address}, Secret: own, Insecure: true})
	if err != nil {
		t.Fatal(err)
	}
	remote.Close()
	l, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	open, err := server.New(server.Config{Backend: c.Node(0)})
	if err != nil {
		t.Fatal(err)
	}
	if err := open.Serve(l); err == nil || !strings.Contains(err.Error(), "secret") {
		t.Errorf("without a secret on all interfaces: %v", err)
	}
}

// Clients recognise a server by the secret. A client with TLS and a server without, or
// the reverse, get a clear error at once, however long the client may look for nodes.
func TestTLS(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 1)
	secret, err := hiqlite.NewSecret([]byte("a secret of the tests"))
	if err != nil {
		t.Fatal(err)
	}
	other, err := hiqlite.NewSecret([]byte("another secret of the tests"))
	if err != nil {
		t.Fatal(err)
	}
	serverTLS, err := protocol.ServerTLS(secret)
	if err != nil {
		t.Fatal(err)
	}
	encryptedServer, encrypted := serve(t, server.Config{Backend: c.Node(0), Secret: secret.Text(), TLS: serverTLS})
	plainServer, plain := serve(t, server.Config{Backend: c.Node(0), Secret: secret.Text()})
	wait := time.Hour
	dial := func(address string, secret hiqlite.Secret, config *tls.Config) error {
		remote, err := hiqlite.Dial(testrun.Context(t), hiqlite.RemoteConfig{Addresses: []string{address}, Secret: secret, TLS: config, Insecure: config == nil, ReconnectTimeout: wait})
		if err == nil {
			var n int
			err = remote.DB().QueryRow("SELECT 7").Scan(&n)
			remote.Close()
		}
		return err
	}
	clientTLS := func(s hiqlite.Secret) *tls.Config {
		cfg, err := protocol.ClientTLS(s)
		if err != nil {
			t.Fatal(err)
		}
		return cfg
	}
	if err := dial(encrypted, secret, clientTLS(secret)); err != nil {
		t.Error(err)
	}
	for _, x := range []struct {
		name    string
		address string
		secret  hiqlite.Secret
		config  *tls.Config
		want    string
	}{
		{"another secret", encrypted, other, clientTLS(other), "does not hold the secret"},
		{"TLS to a server without", plain, secret, clientTLS(secret), "the server does not use TLS"},
		{"a client without TLS", encrypted, secret, nil, "the server uses TLS"},
		{"a client without TLS, and a server that answers with an alert", foreign(t, nil, "\x15\x03\x03\x00\x02\x02\x0a"), secret, nil, "the server uses TLS"},
		{"TLS of another protocol", foreign(t, serverTLS, ""), secret, clientTLS(secret), "another protocol"},
	} {
		if err := dial(x.address, x.secret, x.config); !errors.Is(err, hiqlite.ErrNoLeader) || !strings.Contains(err.Error(), x.want) || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", x.name, err)
		}
	}
	wait = 100 * time.Millisecond // it may be a load balancer whose servers are restarted
	if err := dial(foreign(t, nil, "HTTP/1.1 502 Bad Gateway\r\n\r\n"), secret, nil); !errors.Is(err, hiqlite.ErrNoLeader) || !strings.Contains(err.Error(), "no hiqlite server") {
		t.Errorf("a server of HTTP/1: %v", err)
	}
	if code, answer := post(t, "http://"+encrypted+execute, "{}"); code != 400 || !strings.Contains(answer, "HTTPS") {
		t.Errorf("plain HTTP to a server with TLS: %d %s", code, answer)
	}
	if code, answer := post(t, "https://"+plain+execute, "{}"); code != 0 || !strings.Contains(answer, "server gave HTTP response to HTTPS client") {
		t.Errorf("HTTPS to a server without TLS: %d %s", code, answer)
	}
	if e, p := encryptedServer.Counters().WrongScheme, plainServer.Counters().WrongScheme; e < 2 || p < 2 {
		t.Errorf("the servers have counted %d and %d connections of the wrong scheme", e, p)
	}
}

// foreign returns the address of another server. With TLS, it speaks no HTTP; without,
// it sends an answer.
func foreign(t *testing.T, cfg *tls.Config, answer string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if cfg != nil {
		cfg = cfg.Clone()
		cfg.NextProtos = nil
		l = tls.NewListener(l, cfg)
	}
	var work sync.WaitGroup
	work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			work.Go(func() {
				defer c.Close()
				_, _ = c.Read(make([]byte, 1<<10)) // it may be no TLS
				_, _ = io.WriteString(c, answer)
			})
		}
	})
	t.Cleanup(func() { l.Close(); work.Wait() })
	return l.Addr().String()
}

// A rawSession is a session without the driver, alone in its stream.
type rawSession struct {
	*connect.BidiStreamForClient[apiv1.SessionRequests, apiv1.SessionResponses]
}

func (s rawSession) send(requests ...*apiv1.SessionRequest) error {
	return s.Send(&apiv1.SessionRequests{Requests: requests})
}

func (s rawSession) receive() (*apiv1.SessionResponse, error) {
	m, err := s.Receive()
	if err != nil {
		return nil, err
	}
	for _, r := range m.Responses {
		if r.Error != nil {
			return nil, errors.New(r.Error.Message)
		}
	}
	return m.Responses[0], nil
}

func newRawSession(ctx context.Context, client *http.Client, address string) rawSession {
	return rawSession{hiqlitev1connect.NewDatabaseClient(client, "http://"+address).Session(ctx)}
}

func openRawSession(t *testing.T, ctx context.Context, client *http.Client, address string) rawSession {
	t.Helper()
	s := newRawSession(ctx, client, address)
	if err := s.send(opening); err != nil {
		t.Fatal(err)
	}
	if _, err := s.receive(); err != nil {
		t.Fatal(err)
	}
	return s
}

var opening = &apiv1.SessionRequest{Id: 1, Request: &apiv1.SessionRequest_Open{Open: &apiv1.Open{}}}

// A session of malformed requests ends with a clear error.
func TestBadSessions(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 1)
	counting, address := serve(t, server.Config{Backend: c.Node(0)})
	client := httpClient(t, true)
	ping := &apiv1.SessionRequest_Ping{Ping: &apiv1.Ping{}}
	for name, x := range map[string]struct {
		requests []*apiv1.SessionRequest
		want     string
	}{
		"no Open":             {[]*apiv1.SessionRequest{{Id: 1, Request: ping}}, "Open"},
		"an Open without id":  {[]*apiv1.SessionRequest{{Request: &apiv1.SessionRequest_Open{Open: &apiv1.Open{}}}}, "Open"},
		"an Open twice":       {[]*apiv1.SessionRequest{opening, opening}, "open already"},
		"an id twice":         {[]*apiv1.SessionRequest{opening, {Id: 1, Request: ping}}, "follows"},
		"nothing":             {[]*apiv1.SessionRequest{opening, {Id: 2}}, "malformed"},
		"a Fetch of no query": {[]*apiv1.SessionRequest{opening, {Id: 2, Request: &apiv1.SessionRequest_Fetch{Fetch: &apiv1.Fetch{Query: 9}}}}, "closed"},
		"a Commit of nothing": {[]*apiv1.SessionRequest{opening, {Id: 2, Request: &apiv1.SessionRequest_Commit{Commit: &apiv1.Commit{}}}}, "no transaction"},
		"a bad PRAGMA":        {[]*apiv1.SessionRequest{{Id: 1, Request: &apiv1.SessionRequest_Open{Open: &apiv1.Open{Pragmas: []string{"a;b"}}}}}, "more than one statement"},
	} {
		s := newRawSession(testrun.Context(t), client, address)
		if err := s.send(x.requests...); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		var err error
		for err == nil {
			_, err = s.receive()
		}
		if !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: %v, want %q", name, err, x.want)
		}
		_ = s.CloseRequest()
	}
	if n := counting.Counters().Malformed; n < 6 {
		t.Errorf("the server has counted %d malformed requests", n)
	}
}

// A client that vanishes inside a transaction, or reads nothing, holds up nobody.
func TestClientsThatVanish(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 1)
	s, address := serve(t, server.Config{Backend: c.Node(0)})
	mustExec(t, c.DB(0), "CREATE TABLE t(n INT)")
	vanishing := httpClient(t, true)
	var conns []net.Conn
	var mu sync.Mutex
	vanishing.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, address)
		mu.Lock()
		defer mu.Unlock()
		conns = append(conns, c)
		return c, err
	}
	ctx, cancel := context.WithCancel(testrun.Context(t))
	defer cancel()
	tx := openRawSession(t, ctx, vanishing, address)
	for _, r := range []*apiv1.SessionRequest{
		{Id: 2, Request: &apiv1.SessionRequest_Begin{Begin: &apiv1.Begin{}}},
		{Id: 3, Request: &apiv1.SessionRequest_Exec{Exec: &apiv1.Statement{Sql: "INSERT INTO t VALUES(1)"}}},
	} {
		if err := tx.send(r); err != nil {
			t.Fatal(err)
		}
		if _, err := tx.receive(); err != nil {
			t.Fatal(err)
		}
	}
	slow := openRawSession(t, ctx, vanishing, address)
	const endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n) SELECT i FROM n"
	go func() { // until the stream ends
		for id := uint64(2); ; id++ {
			if slow.send(&apiv1.SessionRequest{Id: id, Request: &apiv1.SessionRequest_Query{Query: &apiv1.Statement{Sql: endless}}}) != nil {
				return
			}
		}
	}()
	time.Sleep(100 * time.Millisecond) // it sends what it can
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	if before.HeapAlloc > 400<<20 {
		t.Errorf("a client that reads nothing makes the heap %d MiB", before.HeapAlloc>>20)
	}
	mu.Lock()
	for _, c := range conns {
		c.Close()
	}
	mu.Unlock()
	began := time.Now()
	mustExec(t, c.DB(0), "INSERT INTO t VALUES(2)")
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("a write waited for %v", took)
	}
	if got := value[string](t, c.DB(0), "SELECT group_concat(n) FROM t"); got != "2" {
		t.Errorf("the rows are %s", got)
	}
	testrun.WaitFor(t, "the sessions to end", func() bool { return s.Counters().Sessions == 0 })
}

// Many idle clients cost little, and those beyond the limit get a clear error.
func TestIdleClients(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 1)
	clients := testrun.Rounds(1000, 10_000)
	s, address := serve(t, server.Config{Backend: c.Node(0), Limits: server.Limits{MaxSessions: clients, IdleSession: time.Hour}})
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	ctx, cancel := context.WithCancel(testrun.Context(t))
	defer cancel()
	client := httpClient(t, true)
	var sessions []rawSession
	for range clients {
		sessions = append(sessions, openRawSession(t, ctx, client, address))
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if each := int64(after.HeapAlloc+after.StackInuse-before.HeapAlloc-before.StackInuse) / int64(clients); each > 150<<10 {
		t.Errorf("an idle client, with its server, takes %d KiB", each>>10)
	}
	if n := s.Counters().Sessions; n != clients {
		t.Errorf("there are %d sessions", n)
	}
	more := newRawSession(ctx, client, address)
	_ = more.send(opening)
	if _, err := more.receive(); err == nil || !strings.Contains(err.Error(), fmt.Sprint(clients)) {
		t.Errorf("one more: %v", err)
	}
	_ = more.CloseRequest()
	if n := s.Counters().RefusedSessions; n != 1 {
		t.Errorf("the server has counted %d", n)
	}
	if code, _ := post(t, "http://"+address+query, `{"statement":{"sql":"SELECT 1"}}`); code != 200 {
		t.Errorf("a unary call: %d", code)
	}
	for _, s := range sessions {
		_ = s.CloseRequest()
	}
	testrun.WaitFor(t, "the sessions to end", func() bool { return s.Counters().Sessions == 0 })
}

// A session that is idle is closed, and its client does not notice.
func TestIdleSessions(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 1)
	s, address := serve(t, server.Config{Backend: c.Node(0), Limits: server.Limits{IdleSession: 20 * time.Millisecond}})
	remote, err := hiqlite.NewRemote(hiqlite.RemoteConfig{Addresses: []string{address}})
	if err != nil {
		t.Fatal(err)
	}
	defer remote.Close()
	conn, err := remote.DB().Conn(testrun.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for i := range 3 {
		if _, err := conn.ExecContext(testrun.Context(t), "CREATE TABLE IF NOT EXISTS t(n)"); err != nil {
			t.Fatal(err)
		}
		testrun.WaitFor(t, "the session to be closed", func() bool { return s.Counters().IdleSessions == uint64(i+1) })
	}
}

// A query whose rows a client leaves open is closed, because it holds a reader of the
// node. The client gets a clear error, and its connection works on.
func TestIdleQueries(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 1)
	s, address := serve(t, server.Config{Backend: c.Node(0), Limits: server.Limits{IdleSession: 50 * time.Millisecond}})
	remote, err := hiqlite.NewRemote(hiqlite.RemoteConfig{Addresses: []string{address}})
	if err != nil {
		t.Fatal(err)
	}
	defer remote.Close()
	conn, err := remote.DB().Conn(testrun.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.ExecContext(testrun.Context(t), "CREATE TEMP TABLE mine(n)"); err != nil { // so that the session stays
		t.Fatal(err)
	}
	rows, err := conn.QueryContext(testrun.Context(t), "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n) SELECT i FROM n")
	if err != nil {
		t.Fatal(err)
	}
	testrun.WaitFor(t, "the query to be closed", func() bool { return s.Counters().IdleQueries == 1 })
	for rows.Next() {
	}
	if err := rows.Err(); err == nil || !strings.Contains(err.Error(), "fetched no rows") {
		t.Errorf("the rows end with %v", err)
	}
	rows.Close()
	if _, err := conn.ExecContext(testrun.Context(t), "INSERT INTO mine VALUES(1)"); err != nil {
		t.Errorf("then: %v", err)
	}
}

// Shutdown lets a transaction and a request in flight end, and is not ready meanwhile.
func TestShutdown(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 1)
	s, address := serve(t, server.Config{Backend: c.Node(0)})
	remote, err := hiqlite.NewRemote(hiqlite.RemoteConfig{Addresses: []string{address}, ReconnectTimeout: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer remote.Close()
	mustExec(t, remote.DB(), "CREATE TABLE t(n)")
	tx, err := remote.DB().Begin()
	if err != nil {
		t.Fatal(err)
	}
	idle, err := remote.DB().Conn(testrun.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	done := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		done <- s.Shutdown(ctx)
	}()
	testrun.WaitFor(t, "the idle session to end", func() bool { return s.Counters().Sessions == 1 })
	for n := range 3 {
		if _, err := tx.Exec("INSERT INTO t VALUES(?)", n); err != nil {
			t.Error(err)
		}
	}
	select {
	case err := <-done:
		t.Errorf("Shutdown has not waited for the transaction: %v", err)
	default:
	}
	if err := tx.Commit(); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n := value[int](t, c.DB(0), "SELECT count(*) FROM t"); n != 3 {
		t.Errorf("there are %d rows", n)
	}
	if _, err := remote.DB().ExecContext(testrun.Context(t), "SELECT 1"); !errors.Is(err, hiqlite.ErrNoLeader) {
		t.Errorf("after Shutdown: %v", err)
	}
}

// A million rows need bounded memory on both sides.
func TestManyRows(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 1)
	rows, err := c.Remote(0).DB().QueryContext(testrun.Context(t), "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<1000000) SELECT i, 'the text of row '||i FROM n")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var sum, n int
	var peak uint64
	for rows.Next() {
		var text []byte
		if err := rows.Scan(&n, &text); err != nil {
			t.Fatal(err)
		}
		if sum += n; n%100_000 == 0 {
			var now runtime.MemStats
			runtime.ReadMemStats(&now)
			peak = max(peak, now.HeapAlloc)
		}
		if n == 1 && !bytes.Equal(text, []byte("the text of row 1")) {
			t.Errorf("the text is %q", text)
		}
	}
	if err := rows.Err(); err != nil || sum != 500000500000 {
		t.Errorf("%d, %v", sum, err)
	}
	if peak > 200<<20 {
		t.Errorf("the heap grew to %d MiB", peak>>20)
	}
}
