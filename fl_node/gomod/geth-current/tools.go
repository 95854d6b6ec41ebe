//go:build tools

// Package tools names the program that is built from this module, so that go.sum covers all it needs.
package tools

import _ "github.com/ethereum/go-ethereum/cmd/geth"
