package server_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/server"
)

// A proxy says that it is one, so that its clients stay with it: the nodes' addresses may
// not be reachable for them.
func TestClientsStayWithTheirProxy(t *testing.T) {
	c := newCluster(t, 1)
	proxy, err := server.New(server.Config{Backend: c.Remote(0)})
	if err != nil {
		t.Fatal(err)
	}
	listener := httptest.NewUnstartedServer(nil).Listener
	served := make(chan struct{})
	go func() { _ = proxy.Serve(listener); close(served) }() // ends with Close
	address := listener.Addr().String()
	status, answer := postJSON(t, "http://"+address+"/hiqlite.v1.Cluster/Status", "{}")
	if status != http.StatusOK || !strings.Contains(answer, `"proxy":true`) {
		t.Errorf("the status of the proxy: %d %s", status, answer)
	}
	http.DefaultClient.CloseIdleConnections()
	client, err := hiqlite.NewRemote(hiqlite.RemoteConfig{Addresses: []string{address}})
	if err != nil {
		t.Fatal(err)
	}
	mustExec(t, client.DB(), "CREATE TABLE t(a)")
	if n := proxy.Counters().Sessions; n == 0 {
		t.Error("the client has no session with the proxy")
	}
	if err := client.Close(); err != nil {
		t.Error(err)
	}
	proxy.Close()
	<-served
}
