"""What the operator may set: settings, users and the sources they come from."""
