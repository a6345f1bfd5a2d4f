"""Which of the cuts a config leaves on the table, by what each is planned to save."""
