package server_test

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/hiqlitetest"
	"github.com/hiqlite/hiqlite/internal/ratelimit"
	"github.com/hiqlite/hiqlite/internal/server"
)

func postJSON(t *testing.T, url, body string) (status int, answer string) {
	t.Helper()
	r, err := http.Post(url, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(b)
}

// A client that sends too much is refused with a clear error, and a driver waits for its
// turn. Other kinds of requests are not affected.
func TestRates(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 1)
	s, err := server.New(server.Config{Backend: c.Node(0), Rates: ratelimit.Limits{SQL: ratelimit.Limit{PerSecond: 20, Burst: 5}}})
	if err != nil {
		t.Fatal(err)
	}
	listener := httptest.NewUnstartedServer(nil).Listener
	go func() { _ = s.Serve(listener) }() // ends with Close
	t.Cleanup(func() { s.Close(); http.DefaultClient.CloseIdleConnections() })
	api := "http://" + listener.Addr().String()

	refused := ""
	for range 7 {
		status, answer := postJSON(t, api+"/hiqlite.v1.Database/Query", `{"statement":{"sql":"SELECT 1"}}`)
		if status != 200 {
			refused = fmt.Sprint(status, " ", answer)
		}
	}
	if !strings.HasPrefix(refused, "429 ") || !strings.Contains(refused, "try again after") {
		t.Errorf("seven queries at once: %q", refused)
	}
	if s.Counters().TooMany == 0 {
		t.Error("the refused queries are not counted")
	}
	if status, answer := postJSON(t, api+"/hiqlite.v1.KV/Get", `{"bucket":"b","key":"k"}`); status != 200 {
		t.Errorf("a request to a cache: %d %s", status, answer)
	}

	remote, err := hiqlite.NewRemote(hiqlite.RemoteConfig{Addresses: []string{listener.Addr().String()}})
	if err != nil {
		t.Fatal(err)
	}
	defer remote.Close()
	mustExec(t, remote.DB(), "CREATE TABLE t(a)")
	began := time.Now()
	for range 20 {
		mustExec(t, remote.DB(), "INSERT INTO t VALUES(1)")
	}
	if took := time.Since(began); took < 500*time.Millisecond {
		t.Errorf("20 inserts of a driver took %v, and may be 20 a second", took)
	}
}

// A node that is starting is reported as healthy for some time, and then as it is.
func TestHealthDelay(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 1)
	for delay, want := range map[time.Duration]int{0: http.StatusServiceUnavailable, time.Hour: http.StatusOK} {
		node := c.Node(0)
		s, err := server.New(server.Config{Backend: node, HealthDelay: delay})
		if err != nil {
			t.Fatal(err)
		}
		if err := node.Close(); err != nil {
			t.Fatal(err)
		}
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/health", nil))
		if w.Code != want {
			t.Errorf("with a delay of %v: %d %s, want %d", delay, w.Code, w.Body, want)
		}
	}
}

// The log has the texts of statements and not their arguments.
func TestLogStatements(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 1)
	var log lockedBuffer
	s, err := server.New(server.Config{Backend: c.Node(0), LogStatements: true, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	listener := httptest.NewUnstartedServer(nil).Listener
	go func() { _ = s.Serve(listener) }() // ends with Close
	t.Cleanup(func() { s.Close(); http.DefaultClient.CloseIdleConnections() })
	api := "http://" + listener.Addr().String()
	if status, answer := postJSON(t, api+"/hiqlite.v1.Database/Query", `{"statement":{"sql":"SELECT 'one', ?","args":[{"value":{"text":"hidden"}}]}}`); status != 200 {
		t.Fatalf("%d %s", status, answer)
	}
	remote, err := hiqlite.NewRemote(hiqlite.RemoteConfig{Addresses: []string{listener.Addr().String()}})
	if err != nil {
		t.Fatal(err)
	}
	defer remote.Close()
	mustExec(t, remote.DB(), "CREATE TABLE two(a)")
	mustExec(t, remote.DB(), "INSERT INTO two VALUES(?)", "hidden")
	text := log.String()
	for _, want := range []string{"SELECT 'one', ?", "CREATE TABLE two(a)", "INSERT INTO two VALUES(?)"} {
		if strings.Count(text, want) != 1 {
			t.Errorf("the log has %q %d times:\n%s", want, strings.Count(text, want), text)
		}
	}
	if strings.Contains(text, "hidden") {
		t.Errorf("the log has an argument:\n%s", text)
	}
}

// lockedBuffer is a buffer for several goroutines.
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
