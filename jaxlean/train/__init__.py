"""Loss, optimizer and the one jitted step."""
