"""What is known of a trial, asked of the database: device tallies, both arms' totals, answers, silence."""
