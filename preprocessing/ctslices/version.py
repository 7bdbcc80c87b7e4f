"""The version that a store notes as its writer's."""

VERSION = "0.1.0"
