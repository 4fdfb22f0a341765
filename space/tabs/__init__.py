"""What the page's tabs say and take: their texts and files, what visitors name, examples and boards."""
