package hiqlite_test

import (
	"context"
	"fmt"
	"log"
	"testing/fstest"

	"github.com/hiqlite/hiqlite"
)

func ExampleMigrate() {
	db, closeAll := openExample()
	defer closeAll()

	// In a program these are files, brought along with go:embed.
	files := fstest.MapFS{
		"0001_users.sql": {Data: []byte("CREATE TABLE users(id INTEGER PRIMARY KEY, name TEXT NOT NULL);")},
		"0002_admin.sql": {Data: []byte("ALTER TABLE users ADD COLUMN admin INTEGER NOT NULL DEFAULT 0;\nINSERT INTO users(name, admin) VALUES('ada', 1);")},
	}
	for range 2 { // the second start finds nothing to do
		if err := hiqlite.Migrate(context.Background(), db, files); err != nil {
			log.Fatal(err)
		}
	}
	var name string
	if err := db.QueryRow("SELECT name FROM users WHERE admin").Scan(&name); err != nil {
		log.Fatal(err)
	}
	fmt.Println(name)
	// Output: ada
}
