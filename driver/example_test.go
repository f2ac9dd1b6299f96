package driver_test

import (
	"database/sql"
	"fmt"
	"log"
	"os"

	_ "github.com/hiqlite/hiqlite/driver"
)

func Example() {
	dir, err := os.MkdirTemp("", "hiqlite-*") // the data folder of the node
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	db, err := sql.Open("hiqlite", dir+"?_time_format=sqlite")
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec("CREATE TABLE greetings(word TEXT)"); err != nil {
		log.Fatal(err)
	}
	if _, err := db.Exec("INSERT INTO greetings VALUES(?)", "hello"); err != nil {
		log.Fatal(err)
	}
	var word string
	if err := db.QueryRow("SELECT word FROM greetings").Scan(&word); err != nil {
		log.Fatal(err)
	}
	fmt.Println(word)
	// Output: hello
}
