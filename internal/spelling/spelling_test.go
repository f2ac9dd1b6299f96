package spelling

import (
	"strings"
	"testing"
)

func TestNearest(t *testing.T) {
	known := []string{"node_id", "nodes", "node_id_from", "data_dir", "HQL_DATA_DIR"}
	for name, want := range map[string]string{
		"nodeid": "node_id", "node": "nodes", "NODE_ID": "node_id", "datadir": "data_dir",
		"HQL_DATADIR": "HQL_DATA_DIR", "hql_data_dir": "HQL_DATA_DIR", "nodes_id_from": "node_id_from",
		strings.Repeat("x", 100): "node_id", // longer than what is compared
	} {
		if got := Nearest(name, known); got != want {
			t.Errorf("nearest to %q is %q, want %q", name, got, want)
		}
	}
	if got := Nearest("x", nil); got != "" {
		t.Errorf("nearest of nothing is %q", got)
	}
}
