package hiqlite_test

import "errors"

func failDisk() error { return errors.New("not on this system") }
